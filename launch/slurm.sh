#!/usr/bin/env bash
# Runs one training on several nodes of a SLURM cluster. Submit it from the clone's folder:
#
#   sbatch --nodes=4 launch/slurm.sh --flagfile=configs/cifar10.cfg --data_dir=DATA --output_dir=RUN
#
# Options of sbatch go before the script, and flags of urkle_tf.train after it. Two minutes before its
# time limit, and if it is preempted, the job writes a checkpoint and returns to the queue.
# `bash launch/slurm.sh --dry_run FLAGS`, within a job, prints what each node would run.
#SBATCH --job-name=urkle_tf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
# sbatch runs a copy of this file from elsewhere.
cd -- "${SLURM_SUBMIT_DIR:-$(dirname -- "${BASH_SOURCE[0]}")/..}"
source launch/environment.sh

[ -n "${SLURM_JOB_NODELIST:-}" ] || fail "this is not a job of SLURM: submit it with sbatch launch/slurm.sh"
port=$((20000 + ${SLURM_JOB_ID:-0} % 10000))
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
workers=$(for node in $nodes; do printf '"%s:%s",' "$node" "$port"; done)
export URKLE_WORKERS="[${workers%,}]"
# One task per node. The task's number is its node's place in the list.
node='export TF_CONFIG="{\"cluster\": {\"worker\": $URKLE_WORKERS}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
exec python -m urkle_tf.train --strategy=multi_worker "$@"'
[ -z "$dry" ] || { echo "URKLE_WORKERS='$URKLE_WORKERS' srun bash -c '$node' train ${*@Q}"; exit; }
make_environment gpu  # once, on a file system that all nodes share

code=0
srun --kill-on-bad-exit=0 bash -c "$node" train "$@" || code=$?
# 143: stopped by SIGTERM. 138: another node has stopped. Both resume from the last checkpoint.
if [ "$code" -eq 143 ] || [ "$code" -eq 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
