#!/usr/bin/env bash
# Set up what is missing and run all tests:
#     bash run_tests.sh                  # arguments are passed on to pytest
set -euo pipefail
cd "$(dirname "$0")"

. ./setup_environment.sh
setup_environment requirements-dev.txt

python -m ruff check .
exec python -m pytest "$@"
