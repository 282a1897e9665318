#!/usr/bin/env bash
# Kills a real training again and again, starts it again by the same command, and compares what it
# ends with, bit for bit, with a training that was never interrupted:
#
#   bash tools/soak.sh --output_dir=runs/soak                             # minutes
#   bash tools/soak.sh --output_dir=runs/soak --steps=20000 --kills=100   # hours
#
# tools/soak.py --help says more. Exits with 0 only if nothing was lost.
set -euo pipefail
exec < /dev/null

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment

exec python tools/soak.py "$@"
