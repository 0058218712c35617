#!/usr/bin/env bash
# scripts/setup.sh without the network: what it names as missing, what it refuses.
set -euo pipefail

setup=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/scripts/setup.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset LIBTORCH_ROOT
real_resources=${CONTRASTIVE_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/contrastive}/resources
export CONTRASTIVE_CACHE=$folder/cache

# Runs set-up with the arguments after the first, which is the exit status it must have; its output goes to $output.
run_setup() {
  local expected=$1 status=0
  shift
  output=$("$setup" "$@" 2>&1) || status=$?
  ((status == expected)) || fail "setup.sh $* exits with $status, not $expected"
}

fail() {
  printf 'FAILED: %s\n%s\n' "$1" "$output" >&2
  exit 1
}

expect() { [[ $output == *"$1"* ]] || fail "not said: $1"; }
expect_not() { [[ $output != *"$1"* ]] || fail "said: $1"; }

names_every_missing_wheel_when_offline() {
  local wheel
  run_setup 1 --offline --no-apt --cuda off
  for wheel in torch-2.11.0 nvidia_cuda_runtime-13.0.96 nvidia_cuda_cupti-13.0.85 open_clip_torch-3.3.0 timm-1.0.31; do
    expect "missing: wheel $CONTRASTIVE_CACHE/wheels/$wheel-"
  done
  expect "--offline: 5 missing"
  [[ ! -e $CONTRASTIVE_CACHE ]] || fail "an offline run that fails has made the cache folder"
}

refuses_a_corrupt_wheel() {
  local wheel=$CONTRASTIVE_CACHE/wheels/open_clip_torch-3.3.0-py3-none-any.whl
  mkdir -p "${wheel%/*}"
  head -c 1547268 /dev/zero >"$wheel" # the right size
  run_setup 1 --offline --no-apt --cuda off
  expect "missing: wheel $wheel (there, but corrupt)"
  [[ -e $wheel ]] || fail "an offline run has removed a wheel"
}

# Makes what looks like a LibTorch of version $1.
make_libtorch() {
  mkdir -p "$folder"/libtorch/{include/ATen,lib}
  touch "$folder"/libtorch/include/ATen/ATen.h "$folder"/libtorch/lib/{libtorch_cpu,libc10}.so
  echo "$1" >"$folder/libtorch/build-version"
}

checks_the_version_of_ones_own_libtorch() {
  export LIBTORCH_ROOT=$folder/libtorch
  run_setup 1 --offline --no-apt
  expect "LIBTORCH_ROOT=$LIBTORCH_ROOT is no LibTorch: it has no include/ATen/ATen.h"
  make_libtorch 2.12.0+cpu
  run_setup 1 --offline --no-apt
  expect "LIBTORCH_ROOT=$LIBTORCH_ROOT must be LibTorch 2.11, but is 2.12.0+cpu"
  make_libtorch 2.11.0+cpu
  run_setup 1 --offline --no-apt
  expect "--offline: 2 missing"
  expect_not "wheels/torch-"
  unset LIBTORCH_ROOT
}

completes_the_data_files_of_an_earlier_version() {
  [[ -e $real_resources/imagenet/classnames.txt ]] || return 0
  mkdir -p "$CONTRASTIVE_CACHE"
  cp -r "$real_resources" "$CONTRASTIVE_CACHE/resources"
  rm -f "$CONTRASTIVE_CACHE/resources/imagenet/synsets.txt"
  LIBTORCH_ROOT=$folder/libtorch run_setup 1 --offline --no-apt
  expect "missing: wheel $CONTRASTIVE_CACHE/wheels/timm-"
  expect "--offline: 1 missing"
  rm -r "$CONTRASTIVE_CACHE/resources"
}

tells_usage_errors_from_failures() {
  run_setup 2 --cuda perhaps
  expect "--cuda must be auto, on or off, but is 'perhaps'"
  run_setup 2 --colour
  expect "unknown argument: --colour"
  run_setup 0 --help
  expect "usage: scripts/setup.sh"
}

names_every_missing_wheel_when_offline
refuses_a_corrupt_wheel
checks_the_version_of_ones_own_libtorch
completes_the_data_files_of_an_earlier_version
tells_usage_errors_from_failures
