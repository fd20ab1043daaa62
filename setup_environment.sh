# Sourced by run_pipeline.sh and run_tests.sh: makes sure that `python` has what a requirements file asks for.
#     setup_environment requirements.txt
# An activated environment (venv or conda) that satisfies the file is used as it is; otherwise .venv is made once
# and used. Needs Python 3.8 or newer with its venv module; PYTHON names another interpreter than python3.

satisfied() {  # interpreter, requirements file
    "$1" - "$2" <<'PY' 2>/dev/null
import re, sys
from importlib.metadata import version

def release(text):
    return [int(part) for part in re.findall(r'\d+', text.split('+')[0])[:3]]

def check(path):
    for line in open(path):
        line = line.split('#')[0].strip()
        if line.startswith('-r'):
            check(line[2:].strip())
        elif line:
            name, _, lowest = line.partition('>=')
            if release(version(name.strip())) < release(lowest):
                raise SystemExit(1)

check(sys.argv[1])
PY
}

setup_environment() {
    local requirements=$1 python=${PYTHON:-python3}
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && satisfied python "$requirements"; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
        echo "$0: error: needs Python 3.8 or newer as $python; set PYTHON to name another one" >&2
        exit 2
    fi
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "making .venv with $("$python" --version)" >&2
        if ! "$python" -m venv --clear .venv; then
            echo "$0: error: $python has no working venv module (on Debian and Ubuntu: apt install python3-venv)" >&2
            exit 2
        fi
    fi
    if ! satisfied .venv/bin/python "$requirements"; then
        echo "installing $requirements into .venv (the first time several GB and some minutes)" >&2
        if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
            echo "$0: error: pip could not install $requirements; see above, then run the same command again" >&2
            exit 2
        fi
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
}
