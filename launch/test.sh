#!/usr/bin/env bash
# Format, lint, types and tests, in their own environment:
#
#   bash launch/test.sh                            # all of it: eight minutes on two cores
#   bash launch/test.sh --full                     # and what takes long too: an hour
#   bash launch/test.sh tests/spec_test.py -k name   # arguments go to pytest
#
# Downloads no data. Tests on MNIST and CIFAR-10 run where URKLE_DATA_DIR holds them prepared by
# TensorFlow Datasets, and are skipped elsewhere. Exits with 0 only if everything passed.
set -euo pipefail

caller=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# A relative folder is relative to where the caller stood.
if [ -n "${URKLE_DATA_DIR:-}" ]; then
  URKLE_DATA_DIR=$(cd -- "$caller" && cd -- "$URKLE_DATA_DIR" 2> /dev/null && pwd) \
    || { echo "urkle_tf: URKLE_DATA_DIR is not a folder" >&2; exit 1; }
  export URKLE_DATA_DIR
fi
source launch/environment.sh
# What takes long also meets other libraries: PyTorch, ART, KerasHub, MkDocs.
case " $* " in *" --full "*) make_environment test,attacks,docs,hub,judge,notebooks ;; *) make_environment test,docs ;; esac

# Each check runs even if one before it failed, so that one run shows all there is to fix.
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
# A file stays in one process: its tests share what they compile. Each process takes 2 GB.
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=15 "$@" || status=$?
[ "$status" -ne 0 ] || [ ${#failed[@]} -eq 0 ] || status=1
exit "$status"
