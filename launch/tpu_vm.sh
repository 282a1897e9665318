#!/usr/bin/env bash
# One training on the chips of a TPU VM:
#
#   bash launch/tpu_vm.sh --flagfile=configs/cifar10.cfg --data_dir=DATA_DIR --output_dir=RUN
#
# TensorFlow 2.19.1 is the last release for TPUs; it takes the place of the other in .venv. Where
# pip does not find libtpu, PIP_FIND_LINKS names the page that lists it. On a slice of several
# hosts, TPU_NAME=its name TPU_LOAD_LIBRARY=0 on one of them. --dry_run as the first word prints
# what would be run.
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

# A TPU computes in bfloat16, and waits for any host that augments.
command=(python -m urkle_tf.train --strategy=tpu --precision=mixed_bfloat16 --augment_on_device "$@")
[ -z "$dry" ] || { echo "${command[*]@Q}"; exit; }
make_environment
if ! python -c 'import importlib.metadata as m; m.version("tensorflow-tpu")' 2> /dev/null; then
  python -m pip uninstall --quiet --yes tensorflow
  python -m pip install --quiet --disable-pip-version-check "tensorflow-tpu==2.19.1" \
    || fail "could not install tensorflow-tpu (pip says why above): delete .venv and try again"
fi
export TPU_NAME=${TPU_NAME:-local}
exec "${command[@]}"
