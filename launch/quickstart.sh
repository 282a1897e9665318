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
python - "$epsilon" "SimCLR=$runs/simclr-report" "SimCLR + Urkle=$runs/simclr_urkle-report" <<'TABLE'
import json
import pathlib
import sys

epsilon, *rows = sys.argv[1:]
print(f"{'digits, linear head':<22}{'clean %':>9}{'robust %':>10}   95% interval of robust %")
for row in rows:
  name, folder = row.split("=")
  report = json.loads((pathlib.Path(folder) / "report.json").read_text(encoding="utf-8"))
  # The attack that did the most damage, whether it aimed at sampled representations or their mean.
  worst = min(report["attacks"], key=lambda attack: attack["accuracy"])
  low, high = worst["interval"]
  print(
    f"{name:<22}{100 * report['clean']['accuracy']:>9.1f}{100 * worst['accuracy']:>10.1f}"
    f"   {100 * low:.1f} to {100 * high:.1f}"
  )
print(
  f"({report['clean']['examples']} test images; robust: the lowest accuracy under "
  f"{', '.join(sorted({a['name'] for a in report['attacks']}))}, {worst['norm']}, epsilon {epsilon})"
)
TABLE

cat << END

Took $((SECONDS - started)) s after installation. To look further:
  every curve and picture   .venv/bin/tensorboard --logdir=$runs --host=localhost
                            and open http://localhost:6006
  the measurements          $runs/simclr_urkle-report/report.md
  what the flags mean       .venv/bin/python -m urkle_tf.train --help
END
