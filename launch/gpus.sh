#!/usr/bin/env bash
# Runs a training on this host's GPU, or on all of its GPUs together:
#
#   bash launch/gpus.sh --flagfile=configs/cifar10.cfg --data_dir=DATA_DIR --output_dir=RUN
#
# CUDA_VISIBLE_DEVICES=0,1 selects GPUs. --batch_size is the total over all GPUs. On SIGTERM and
# Ctrl-C, the training writes a checkpoint, from which the same command resumes. --dry_run as the
# first word prints the command without running it. The first run installs TensorFlow's CUDA
# libraries, about 2.5 GB.
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

command=(python -m urkle_tf.train --strategy=mirrored --augment_on_device "$@")
[ -z "$dry" ] || { echo "${command[*]@Q}"; exit; }
nvidia-smi --list-gpus > /dev/null 2>&1 || fail "nvidia-smi finds no GPU here: is the driver installed?"
make_environment gpu
# Takes memory only as needed, so that an evaluation can run on the same GPU.
export TF_FORCE_GPU_ALLOW_GROWTH=${TF_FORCE_GPU_ALLOW_GROWTH:-true}
exec "${command[@]}"
