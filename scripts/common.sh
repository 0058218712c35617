# Shared by the scripts beside this file; sourced, never run.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

warn() { say "$@" >&2; }

die() {
  warn "$@"
  exit 1
}

# Memory that a build may take, in MB: what is free, or what the control group leaves if that is less.
available_memory_mb() {
  local free_mb limit used group=/sys/fs/cgroup
  free_mb=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
  if [[ -r $group/memory.max && -r $group/memory.current ]]; then
    limit=$(<"$group/memory.max")
    used=$(<"$group/memory.current")
    if [[ $limit != max ]] && (((limit - used) / 1048576 < free_mb)); then
      free_mb=$(((limit - used) / 1048576))
    fi
  fi
  echo "$free_mb"
}

# A file that includes torch/torch.h takes up to 1.5 GB to compile.
parallel_jobs() {
  local jobs by_memory
  jobs=$(nproc)
  by_memory=$(($(available_memory_mb) / 1500))
  ((by_memory >= 1)) || by_memory=1
  echo $((by_memory < jobs ? by_memory : jobs))
}

# CONTRASTIVE_SETUP_FLAGS: options for setup.sh, as in "--offline --cuda off".
run_setup() {
  local flags
  read -r -a flags <<<"${CONTRASTIVE_SETUP_FLAGS:-}"
  "$repository/scripts/setup.sh" "${flags[@]}"
}
