#!/usr/bin/env bash
# Set up what is missing and run all tests:
#     bash run_tests.sh                  # two files of tests at a time; arguments are passed on to pytest
#     bash run_tests.sh -n 0 tests/wire  # one after another, in this process (for --pdb)
set -euo pipefail
cd "$(dirname "$0")"

. ./setup_environment.sh
setup_environment requirements-dev.txt

python -m ruff check .
exec python -m pytest -n 2 --dist loadfile "$@"
