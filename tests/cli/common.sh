# Shared by the tests of the programs: BIN is the folder of the programs, SOURCE the repository, WORK a fresh folder.
set -euo pipefail
BIN=$(realpath "$1")
SOURCE=$(realpath "$2")
WORK=$(mktemp -d)
trap 'jobs -p | xargs -r kill -9 2>/dev/null || true; rm -rf "$WORK"' EXIT
cd "$WORK"
TINY=$SOURCE/tests/fixtures/configs/tiny.yaml
checks=0

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# expect_failure CODE TEXT COMMAND...: the command exits with CODE, says TEXT on stderr, in one line unless it is a list,
# and prints no stack trace.
expect_failure() {
  local code=$1 text=$2 status=0
  shift 2
  "$@" >out.txt 2>err.txt || status=$?
  [[ $status == "$code" ]] || fail "'$*' exited with $status, expected $code: $(cat err.txt)"
  grep -qF -- "$text" err.txt || fail "'$*' said: $(cat err.txt); expected: $text"
  ! grep -q 'Exception raised from' err.txt || fail "'$*' shows a stack trace"
  echo "ok: $(head -n 1 err.txt)"
  checks=$((checks + 1))
}

expect_success() {
  "$@" >out.txt 2>err.txt || fail "'$*' failed: $(cat err.txt)"
  checks=$((checks + 1))
}

# "step loss" of every step line, in order.
losses() {
  grep -v '"evaluation"' "$1/metrics.jsonl" | sed -E 's/.*"step":([0-9]+),.*"loss":([^,]+),.*/\1 \2/'
}
