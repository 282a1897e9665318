#!/usr/bin/env bash
# One training on all GPUs of this host, or on its one GPU:
#
#   bash launch/gpus.sh --flagfile=configs/cifar10.cfg --data_dir=DATA_DIR --output_dir=RUN
#
# CUDA_VISIBLE_DEVICES=0,1 chooses among them. --batch_size is that of all GPUs together. SIGTERM
# and Ctrl-C write a checkpoint; the same command resumes from it. --dry_run as the first word
# prints what would be run. The first time it installs TensorFlow's CUDA libraries, about 2.5 GB.
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

command=(python -m urkle_tf.train --strategy=mirrored --augment_on_device "$@")
[ -z "$dry" ] || { echo "${command[*]@Q}"; exit; }
nvidia-smi --list-gpus > /dev/null 2>&1 || fail "nvidia-smi finds no GPU here: is the driver installed?"
make_environment gpu
# Memory as it is needed: an evaluation may run beside.
export TF_FORCE_GPU_ALLOW_GROWTH=${TF_FORCE_GPU_ALLOW_GROWTH:-true}
exec "${command[@]}"
