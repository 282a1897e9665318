#!/usr/bin/env bash
# The small-budget road to a robust encoder on CIFAR-10, teacher and student, from data to table:
#
#   bash experiments/cifar10_cpu.sh DATA_DIR [RUNS]
#
# DATA_DIR holds cifar10 prepared by TensorFlow Datasets; runs land in RUNS (runs/cifar10_cpu).
# Run it again after an interruption: it resumes.
set -euo pipefail
exec < /dev/null

data=$(cd -- "${1:?give the folder that holds cifar10 prepared by TensorFlow Datasets}" && pwd)
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
runs=${2:-runs/cifar10_cpu}
source launch/environment.sh
make_environment

python -m urkle_tf.train --flagfile=configs/cifar10_cpu_teacher.cfg --data_dir="$data" \
  --output_dir="$runs/teacher"
python -m urkle_tf.train --flagfile=configs/cifar10_cpu.cfg --data_dir="$data" \
  --pretext="distil(teacher=$runs/teacher/encoder, start=true)" --output_dir="$runs/student"
for name in teacher student; do
  # The head's weight decay is chosen on train[48000:], then it is trained on all images.
  python -m urkle_tf.finetune --encoder="$runs/$name/encoder" --protocol=slf --select=robust \
    --dataset=cifar10 --data_dir="$data" --validation_split="train[48000:]" --epochs=20 \
    --output_dir="$runs/$name-slf"
  # All 10,000 test images; each attack continues with those that are still standing.
  python -m urkle_tf.evaluate --classifier="$runs/$name-slf/classifier" \
    --dataset=cifar10 --data_dir="$data" --epsilons=8/255 --standing \
    --attacks="pgd(steps=20, step_size=2/255),pgd(steps=100, step_size=1/255)" \
    --output_dir="$runs/$name-report"
done
python experiments/table.py "SimCLR teacher=$runs/teacher-report" "Distil+Urkle=$runs/student-report"
python experiments/curves.py "$runs/curves.png" "SimCLR teacher=$runs/teacher" "Distil+Urkle=$runs/student"
