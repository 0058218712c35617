#!/bin/bash
# Starts a run on several machines that share a file system and need no password for ssh:
#
#   ssh.sh node1,node2 8 clip_train --config my_run.yaml --resume auto
#
# starts 8 ranks on each machine in the folder of the same name. MASTER_PORT (default 29500) must be free on the first.
# `ssh node1 pkill -TERM clip_train` saves and stops the run.
set -euo pipefail
IFS=, read -ra hosts <<<"$1"
per_host=$2
shift 2
command=$(printf '%q ' "$@")
world_size=$((${#hosts[@]} * per_host))

pids=()
trap 'kill "${pids[@]}" 2>/dev/null' EXIT
for ((rank = 0; rank < world_size; ++rank)); do
  variables=(RANK="$rank" WORLD_SIZE="$world_size" LOCAL_RANK="$((rank % per_host))" LOCAL_WORLD_SIZE="$per_host"
    MASTER_ADDR="${hosts[0]}" MASTER_PORT="${MASTER_PORT:-29500}")
  # -tt: the rank ends when this script does.
  ssh -tt -o BatchMode=yes "${hosts[rank / per_host]}" "cd $(printf %q "$PWD") && ${variables[*]} exec $command" </dev/null &
  pids+=($!)
done

status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
