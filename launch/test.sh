#!/usr/bin/env bash
# Checks format, lint and types, and runs the tests, in a separate environment:
#
#   bash launch/test.sh                              # eight minutes on two cores
#   bash launch/test.sh --full                       # also the slow tests: an hour
#   bash launch/test.sh tests/spec_test.py -k name   # arguments go to pytest
#
# No data is downloaded. Tests on MNIST and CIFAR-10 run if URKLE_DATA_DIR contains both, prepared by
# TensorFlow Datasets. Otherwise they are skipped. The exit code is 0 only if everything passed.
set -euo pipefail

caller=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# A relative folder is relative to the caller's.
if [ -n "${URKLE_DATA_DIR:-}" ]; then
  URKLE_DATA_DIR=$(cd -- "$caller" && cd -- "$URKLE_DATA_DIR" 2> /dev/null && pwd) \
    || { echo "urkle_tf: URKLE_DATA_DIR is not a folder" >&2; exit 1; }
  export URKLE_DATA_DIR
fi
source launch/environment.sh
# The slow tests need more libraries: PyTorch, ART, KerasHub, MkDocs.
case " $* " in *" --full "*) make_environment test,attacks,docs,hub,judge,notebooks ;; *) make_environment test,docs ;; esac

# Each check runs even if an earlier one failed, so that one run shows everything that needs fixing.
failed=()
check() {
  echo "== $*"
  "$@" || failed+=("$1${2:+ $2}")
}
check ruff format --check .
check ruff check .
check mypy
[ ${#failed[@]} -eq 0 ] || printf 'FAILED: %s\n' "${failed[@]}"

echo "== pytest $*"
status=0
# The tests of a file share what they compile, so they stay in one process. Each process takes 2 GB.
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=15 "$@" || status=$?
[ "$status" -ne 0 ] || [ ${#failed[@]} -eq 0 ] || status=1
exit "$status"
