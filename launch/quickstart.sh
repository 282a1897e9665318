#!/usr/bin/env bash
# The whole of urkle_tf on real handwritten digits, in minutes, on any machine:
#
#   bash launch/quickstart.sh
#
# Trains the same encoder without labels twice, without and with the Urkle regulariser, puts a
# linear classifier on each, attacks both, and prints one table. Runs land in runs/quickstart;
# running it again goes on where it stopped, and deleting that folder starts afresh.
set -euo pipefail
exec < /dev/null

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment

started=$SECONDS
config=configs/digits.cfg
runs=runs/quickstart
# Attacked within the radius that the encoder is trained for: the config alone states it.
epsilon=$(sed -n 's/^--epsilon=//p' "$config" | tail -n 1)
[ -n "$epsilon" ] || fail "$config sets no --epsilon"

step() {
  echo
  echo "== $*"
  "$@"
}

step python -m urkle_tf.train --flagfile="$config" --robustness=none --output_dir="$runs/simclr"
step python -m urkle_tf.train --flagfile="$config" --output_dir="$runs/simclr_urkle"
for run in "$runs/simclr" "$runs/simclr_urkle"; do
  step python -m urkle_tf.finetune --encoder="$run/encoder" --dataset=digits --protocol=slf \
    --output_dir="$run-slf"
  step python -m urkle_tf.evaluate --classifier="$run-slf/classifier" --dataset=digits \
    --attacks=pgd --epsilon="$epsilon" --output_dir="$run-report"
done

echo
python experiments/table.py "SimCLR=$runs/simclr-report" "SimCLR+Urkle=$runs/simclr_urkle-report"

cat << END

Took $((SECONDS - started)) s after installation. To look further:
  every curve and picture   .venv/bin/tensorboard --logdir=$runs --host=localhost
                            and open http://localhost:6006
  the measurements          $runs/simclr_urkle-report/report.md
  what the flags mean       .venv/bin/python -m urkle_tf.train --help
END
