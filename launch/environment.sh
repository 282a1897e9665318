# Sourced, not run: makes a Python environment for this checkout and puts it first on PATH.
#
#   source launch/environment.sh
#   make_environment          # what a user needs
#   make_environment test     # also the extra "test". Separate several extras by commas
#
# The environment is .venv in the checkout. It is reused until setup.py changes; delete .venv to
# start again. PYTHON=/path/to/python3.12 chooses the interpreter. If uv is installed, it does the
# work; otherwise pip does. Each follows its own configuration, which also says where downloads come
# from. The tests use the versions in launch/constraints.txt. URKLE_VERSIONS=newest uses the newest
# that setup.py allows, and URKLE_VERSIONS=oldest the oldest, each in a separate environment.

URKLE_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "urkle_tf: $*" >&2
  exit 1
}

# --help as the first word prints the comment at the top of the launcher.
case ${1:-} in
  -h | --help)
    if [ -f "$URKLE_ROOT/launch/${0##*/}" ]; then
      sed -n '2,${/^#\( \|$\)/!q; s/^# \?//p}' "$URKLE_ROOT/launch/${0##*/}"
      exit
    fi
    ;;
esac

# Prints the interpreter to use. A name on PATH may be a shim that does not run, so it tries each.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then
      command -v -- "$candidate"
      return
    fi
    [ "$candidate" != "${PYTHON:-}" ] \
      || fail "PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13 with its venv module"
  done
  fail "found no Python 3.11, 3.12 or 3.13 with its venv module on PATH:" \
    "install one (Debian, Ubuntu: apt install python3.12-venv) or set PYTHON=/path/to/python3.12"
}

# Prints setup.py's lower bounds as constraints: for each, the newest release of that series.
oldest_versions() {
  sed -nE 's/^ *([A-Z]+ = )?"([A-Za-z0-9_-]+)(\[[a-z,]*\])?>=([0-9.]+)[",].*/\2==\4.*/p' \
    "$URKLE_ROOT/setup.py" | sort -u
}

make_environment() {
  local extras=${1:-} venv=$URKLE_ROOT/.venv python marker wanted versions constraints install
  versions=${URKLE_VERSIONS:-}
  [ -n "$versions" ] || case ,$extras, in *,test,*) versions=locked ;; *) versions=newest ;; esac
  case $versions in
    locked) constraints=$URKLE_ROOT/launch/constraints.txt ;;
    newest) constraints=/dev/null ;;
    oldest) constraints=$URKLE_ROOT/.venv-oldest.txt; oldest_versions > "$constraints" ;;
    *) fail "URKLE_VERSIONS=$versions: give locked, newest or oldest" ;;
  esac
  [ -z "${URKLE_VERSIONS:-}" ] || [ "$versions" = locked ] || venv=$URKLE_ROOT/.venv-$versions
  install=("$venv/bin/python" -m pip install --disable-pip-version-check)
  ! command -v uv > /dev/null || install=(uv pip install --python "$venv/bin/python")
  if ! "$venv/bin/python" -c 'import pip' 2> /dev/null; then
    python=$(find_python) || exit 1
    echo "making ${venv##*/} with $("$python" --version)"
    rm -rf -- "$venv"
    "$python" -m venv "$venv" || fail "could not make $venv: is the disk full or read-only?"
  fi
  # Includes the checkout's path: an editable installation points to it, and a moved one is broken.
  wanted=$(cat -- "$URKLE_ROOT/setup.py" "$constraints" <(echo "$URKLE_ROOT") | "$venv/bin/python" -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  # Each set of extras has a marker. It is written last, so an interrupted installation is repeated.
  marker=$venv/installed-${extras:-plain}
  if [ "$(cat -- "$marker" 2> /dev/null)" != "$wanted" ]; then
    echo "installing urkle_tf${extras:+[$extras]} into ${venv##*/} (a few minutes the first time)"
    "${install[@]}" --quiet --constraint "$constraints" \
      --editable "$URKLE_ROOT${extras:+[$extras]}" \
      || fail "the installation failed, for the reason above: check the network, then run the same" \
        "command again. URKLE_VERSIONS=newest ignores the locked versions"
    echo "$wanted" > "$marker"
  fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
}
