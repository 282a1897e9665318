#!/usr/bin/env bash
# Shows what urkle_tf does, on real handwritten digits. Takes a minute and a half once installed:
#
#   bash launch/quickstart.sh           # in a separate environment, .venv
#   bash launch/quickstart.sh --here    # in your current environment, if it has urkle_tf
#
# The script trains the same encoder twice without labels: without and with the Urkle regulariser.
# It then trains a linear classifier on each, attacks both, prints one table and writes one page.
# Everything is in runs/quickstart. To resume, give the same command. To start again, delete the
# folder.
set -euo pipefail
exec < /dev/null

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
case ${1:-} in
  "") make_environment ;;
  --here)
    python -c 'import absl, keras, keras_cv, tensorflow_probability' 2> /dev/null \
      || fail "the Python on PATH lacks packages that urkle_tf needs: run pip install . or omit --here"
    ;;
  *) fail "unknown argument $1: give --here or no argument" ;;
esac
exec python experiments/quickstart.py
