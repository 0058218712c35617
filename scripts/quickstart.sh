#!/usr/bin/env bash
# Set-up, build, then train and evaluate a small CLIP on data that is made on the fly: minutes on a laptop's CPU.
# Arguments go to clip_train: scripts/quickstart.sh train.steps=2000
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly preset=default
readonly build=$repository/build/$preset
readonly run_arguments=(--config quickstart.yaml --resume auto "$@")

build_programs() {
  if [[ ! $build/build.ninja -nt $repository/CMakePresets.json ]]; then
    cmake --preset "$preset"
  fi
  cmake --build --preset "$preset" --parallel "$(parallel_jobs)" --target clip_train clip_eval clip_data clip_bench
}

# Prints where the run's files go, as the resolved config says.
run_folder() {
  "$build/bin/clip_train" "${run_arguments[@]}" --print-config |
    awk '$1 == "output:" { output = $2 } $1 == "name:" && !name { name = $2 } END { print output "/" name }'
}

main() {
  run_setup
  cd "$repository"
  build_programs
  "$build/bin/clip_train" "${run_arguments[@]}"
  say "the run's config, metrics and checkpoints are in $(realpath -m "$(run_folder)")"
}

main
