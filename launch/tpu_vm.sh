#!/usr/bin/env bash
# Runs a training on the chips of a TPU VM:
#
#   bash launch/tpu_vm.sh --flagfile=configs/cifar10.cfg --data_dir=DATA_DIR --output_dir=RUN
#
# TensorFlow 2.19.1 is the last release for TPUs. It replaces the other TensorFlow in .venv. If pip
# does not find libtpu, set PIP_FIND_LINKS to the page that lists it. On a slice of several hosts, run
# the script on one of them, with TPU_NAME=NAME_OF_THE_SLICE TPU_LOAD_LIBRARY=0. --dry_run as the
# first word prints the command without running it.
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

# A TPU computes in bfloat16. If the host augmented the images, the TPU would wait for it.
command=(python -m urkle_tf.train --strategy=tpu --precision=mixed_bfloat16 --augment_on_device "$@")
[ -z "$dry" ] || { echo "${command[*]@Q}"; exit; }
make_environment
installed() { python -c "import importlib.metadata as m; m.version('$1')" 2> /dev/null; }
# launch/test.sh, or a new setup.py, installs the other TensorFlow again, over the files of this one.
if installed tensorflow || ! installed tensorflow-tpu; then
  python -m pip uninstall --quiet --yes tensorflow tensorflow-tpu
  python -m pip install --quiet --disable-pip-version-check "tensorflow-tpu==2.19.1" \
    || fail "could not install tensorflow-tpu (for the reason above): delete .venv and try again"
fi
export TPU_NAME=${TPU_NAME:-local}
exec "${command[@]}"
