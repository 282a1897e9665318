#!/usr/bin/env bash
# Robust encoders on CIFAR-10 with a small budget, a teacher and two students, from data to table:
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
python -m urkle_tf.train --flagfile=configs/cifar10_cpu_clusters.cfg --data_dir="$data" \
  --pretext="clusters(teacher=$runs/teacher/encoder, count=50, start=true)" \
  --output_dir="$runs/clusters"
finetune() {
  python -m urkle_tf.finetune --encoder="$runs/$1/encoder" --dataset=cifar10 --data_dir="$data" \
    --validation_split="train[48000:]" --output_dir="$runs/$1-$2" --protocol="$2" "${@:3}"
}
# The weight decay of a head on clean images is chosen on train[48000:]; then it learns from all.
finetune teacher slf --select=robust --epochs=20
finetune student slf --select=robust --epochs=20
# A head on attacked images; the epoch that does best under attack on train[48000:] is kept.
for name in student clusters; do
  finetune "$name" alf --split="train[:48000]" --epochs=4 --attack_steps=5
done
for name in teacher-slf student-slf student-alf clusters-alf; do
  # All 10,000 test images; each attack continues with those that are still standing.
  python -m urkle_tf.evaluate --classifier="$runs/$name/classifier" \
    --dataset=cifar10 --data_dir="$data" --epsilons=8/255 --standing \
    --attacks="pgd(steps=20, step_size=2/255),pgd(steps=100, step_size=1/255)" \
    --output_dir="$runs/$name-report"
done
python experiments/table.py "SimCLR teacher=$runs/teacher-slf-report" \
  "Distil+Urkle=$runs/student-slf-report" "Distil+Urkle, ALF=$runs/student-alf-report" \
  "AT on clusters, ALF=$runs/clusters-alf-report"
python experiments/curves.py "$runs/curves.png" "SimCLR teacher=$runs/teacher" \
  "Distil+Urkle=$runs/student" "AT on clusters=$runs/clusters"
