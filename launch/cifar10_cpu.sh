#!/usr/bin/env bash
# The small-budget comparison on CIFAR-10, SimCLR against SimCLR+Urkle, from data to table:
#
#   bash launch/cifar10_cpu.sh DATA_DIR [RUNS]
#
# DATA_DIR holds cifar10 prepared by TensorFlow Datasets; runs land in RUNS (runs/cifar10_cpu).
# About an hour and a half on two cores; running it again goes on where it stopped.
set -euo pipefail
exec < /dev/null

data=$(cd -- "${1:?give the folder that holds cifar10 prepared by TensorFlow Datasets}" && pwd)
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
runs=${2:-runs/cifar10_cpu}
source launch/environment.sh
make_environment

for name in simclr_urkle simclr; do
  robustness=()
  [ "$name" = simclr ] && robustness=(--robustness=none)
  python -m urkle_tf.train --flagfile=configs/cifar10_cpu.cfg --data_dir="$data" \
    "${robustness[@]}" --output_dir="$runs/$name"
  # The head's weight decay was chosen on train[48000:], see docs/results/cifar10_cpu.md.
  python -m urkle_tf.finetune --encoder="$runs/$name/encoder" --protocol=slf \
    --dataset=cifar10 --data_dir="$data" --epochs=20 --weight_decay=3 \
    --output_dir="$runs/$name-slf"
  # All 10,000 test images; each attack goes on with those that are still standing.
  python -m urkle_tf.evaluate --classifier="$runs/$name-slf/classifier" \
    --dataset=cifar10 --data_dir="$data" --epsilons=8/255 --standing \
    --attacks="pgd(steps=20, step_size=2/255),pgd(steps=100, step_size=1/255)" \
    --output_dir="$runs/$name-report"
done
python launch/table.py "SimCLR=$runs/simclr-report" "SimCLR+Urkle=$runs/simclr_urkle-report"
python launch/curves.py "$runs/curves.png" "SimCLR=$runs/simclr" "SimCLR+Urkle=$runs/simclr_urkle"
