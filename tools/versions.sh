#!/usr/bin/env bash
# The tests on the oldest and on the newest versions that setup.py allows, one after the other:
#
#   bash tools/versions.sh                                    # both, all tests
#   bash tools/versions.sh oldest tests/spec_test.py -k name  # one; the rest goes to pytest
#
# Each has its own environment, .venv-oldest and .venv-newest; delete them to start again.
# What launch/test.sh says holds here too. Exits with 0 only if everything passed.
set -euo pipefail
exec < /dev/null

here=$(dirname -- "${BASH_SOURCE[0]}")
case ${1:-} in
  oldest | newest) sets=("$1") && shift ;;
  *) sets=(oldest newest) ;;
esac

failed=()
for versions in "${sets[@]}"; do
  echo "== the $versions versions"
  URKLE_VERSIONS=$versions bash "$here/../launch/test.sh" "$@" || failed+=("$versions")
done
[ ${#failed[@]} -eq 0 ] || { echo "FAILED: ${failed[*]}" >&2; exit 1; }
