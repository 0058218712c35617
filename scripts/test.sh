#!/usr/bin/env bash
# Set-up, build and all CPU tests; CI=true makes warnings errors. Arguments go to ctest: scripts/test.sh -L parity
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Prints ctest's figures in the log $1 as one line, 'N passed, N failed, N skipped'. ctest counts skipped tests as
# passed and disabled ones not at all; tests that could not be run are failed.
summary() {
  awk '
    / tests passed, .* tests? failed out of / { failed = $4; total = $NF; found = 1; listing = skipped = disabled = 0 }
    /^The following tests did not run:/ { listing = 1 }
    /^The following tests FAILED:/ { listing = 0 }
    listing && /\(Skipped\)/ { ++skipped }
    listing && /\(Disabled\)/ { ++disabled }
    END {
      if (!found) exit 1
      printf "%d passed, %d failed, %d skipped\n", total - failed - skipped, failed, skipped + disabled
    }' "$1"
}

main() {
  local preset=default jobs log status=0
  [[ ${CI:-} != true ]] || preset=ci
  run_setup
  cd "$repository"
  jobs=$(parallel_jobs)
  cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel "$jobs"

  log=$repository/build/$preset/ctest.log
  ctest --preset "$preset" --output-on-failure --no-tests=error --parallel "$jobs" "$@" 2>&1 | tee "$log" || status=$?
  if ! summary "$log"; then
    ((status)) || status=1
    warn "ctest ran no test"
  fi
  exit "$status"
}

main "$@"
