#!/usr/bin/env bash
# Pack what a device needs into one file: client_worker.py, what it imports, and its requirements.
#
#     bash make_client_bundle.sh                        # writes split_client.tar.gz here
#     bash make_client_bundle.sh /tmp/client.tar.gz
#
# On the device (Python 3.8 or newer; docs/real_mode.md says how a Jetson gets it):
#
#     tar -xzf split_client.tar.gz && cd split_client
#     pip install -r requirements-client.txt
#     python client_worker.py --server_ip 192.168.1.10
set -euo pipefail

files=(client_worker.py cli.py config.py network_utils.py hyper_repvgg.py gamma_configurator.py repvgg.py se_block.py
    network/ tier/ wire/
    requirements-client.txt requirements-safetensors.txt requirements-video.txt requirements-wire.txt LICENSE)

fail() { echo "make_client_bundle.sh: error: $1" >&2; exit 2; }

case ${1:-} in -h|--help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$0"; exit 0 ;; esac
[ $# -le 1 ] || fail "takes one argument, the file to write; see --help"
bundle=${1:-split_client.tar.gz}
[ -d "$(dirname "$bundle")" ] || fail "$bundle: there is no folder $(dirname "$bundle")"
[ ! -d "$bundle" ] || fail "$bundle: is a folder; name the file to write"
top=$(cd "$(dirname "$0")" && pwd)

made=$(mktemp -d)
partial=$bundle.$$
trap 'rm -rf "$made" "$partial"' EXIT
mkdir "$made/split_client"
for file in "${files[@]}"; do
    cp -R "$top/${file%/}" "$made/split_client/"
done
find "$made" -name __pycache__ -prune -exec rm -r {} +
tar -czf "$partial" -C "$made" split_client || fail "$bundle: cannot be written"
mv "$partial" "$bundle"
echo "$bundle"
