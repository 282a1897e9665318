#!/usr/bin/env bash
# Runs one training on several hosts, started by hand. Give the same command on each host, with its
# number:
#
#   bash launch/hosts.sh 0 HOST_A:12345,HOST_B:12345 --flagfile=configs/cifar10.cfg --output_dir=RUN
#   bash launch/hosts.sh 1 HOST_A:12345,HOST_B:12345 --flagfile=configs/cifar10.cfg --output_dir=RUN
#
# Only host 0 writes RUN. Each host needs the data. If a host stops, the others wait for it, and
# resume from the last checkpoint once it is back. Ctrl-C, or SIGTERM to this script, ends the
# training on this host for good, after a checkpoint. A second one ends it at once, for example while
# it waits for the other hosts. --dry_run as the first word prints the command without running it.
set -euo pipefail

dry=
[ "${1:-}" != --dry_run ] || { dry=1; shift; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

[ $# -ge 2 ] || fail "give this host's number, starting from 0, and all HOST:PORT, separated by commas"
number=$1 hosts=$2
shift 2
IFS=, read -ra workers <<< "$hosts"
[[ $number =~ ^[0-9]+$ ]] && [ "$number" -lt ${#workers[@]} ] \
  || fail "the number must be from 0 to $((${#workers[@]} - 1)), got $number"
printf -v list '"%s",' "${workers[@]}"
export TF_CONFIG="{\"cluster\": {\"worker\": [${list%,}]}, \"task\": {\"type\": \"worker\", \"index\": $((10#$number))}}"
command=(python -m urkle_tf.train --strategy=multi_worker "$@")
[ -z "$dry" ] || { echo "TF_CONFIG='$TF_CONFIG' ${command[*]@Q}"; exit; }
make_environment

# The training has its own process group, so Ctrl-C reaches it only through this script, and once. A
# second signal ends it at once.
signals=0 signal= child=
pass_on() {
  signals=$((signals + 1)) signal=$1
  [ "$signals" -eq 1 ] || signal=KILL
  [ -z "$child" ] || kill -s "$signal" "$child" 2> /dev/null || true
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
while true; do
  child=
  set -m
  "${command[@]}" &
  set +m
  # In one command, within which no trap runs: what came before it was not passed on.
  early=$signals child=$!
  [ "$early" -eq 0 ] || kill -s "$signal" "$child" 2> /dev/null || true
  while true; do
    seen=$signals code=0
    wait "$child" || code=$?
    # A signal to this script ends the wait, with a code of its own, so the script waits again.
    [ "$signals" -ne "$seen" ] || break
  done
  # 138: another host has stopped. 143: the training on this host was stopped, but not this script.
  [ "$signals" -eq 0 ] && { [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; } || exit "$code"
  echo "urkle_tf: starting again" >&2
  sleep 5
  [ "$signals" -eq 0 ] || exit "$code"  # a signal came in the pause
done
