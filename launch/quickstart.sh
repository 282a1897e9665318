#!/usr/bin/env bash
# Shows what urkle_tf does, on real handwritten digits, in about a minute and a half:
#
#   bash launch/quickstart.sh           # in its own environment, .venv
#   bash launch/quickstart.sh --here    # in the environment that you are in, which has urkle_tf
#
# Trains the same encoder twice without labels, without and with the Urkle regulariser. Puts a
# linear classifier on each, attacks both, prints one table and writes one page. Everything is in
# runs/quickstart: the same command resumes, and deleting that folder starts again.
set -euo pipefail
exec < /dev/null

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
case ${1:-} in
  "") make_environment ;;
  --here)
    python -c 'import absl, keras, keras_cv, tensorflow_probability' 2> /dev/null \
      || fail "the python on PATH lacks what urkle_tf needs: run pip install . or leave --here out"
    ;;
  *) fail "unknown argument $1: give --here, or nothing" ;;
esac
exec python experiments/quickstart.py
