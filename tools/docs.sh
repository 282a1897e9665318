#!/usr/bin/env bash
# Builds the site from docs/ and the docstrings; a broken link or a faulty docstring is an error:
#
#   bash tools/docs.sh                  # into build/site: open build/site/index.html
#   bash tools/docs.sh serve            # at http://localhost:8000, rebuilt when a page changes
#
# MkDocs comes with the extra "docs", into .venv; arguments go to it.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment docs
[ $# -gt 0 ] || set -- build --clean
exec python -m mkdocs "$@" --strict
