#!/usr/bin/env bash
# What a second rank brings on this machine, and what it costs: scaling.sh BIN SHARDS [STEPS]
# One thread a rank; 1 rank and 2 ranks in turn, three times; medians of the steps after the first ten.
set -euo pipefail
bin=$(realpath "$1")
shards=$2
steps=${3:-30}
config=$(dirname "$(realpath "$0")")/vit_cifar.yaml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# run NAME RANKS BATCH: one run, its metrics appended to NAME.jsonl
run() {
  "$bin/clip_train" --config "$config" --nproc "$2" "data.train=$shards" "train.global_batch=$3" "train.steps=$steps" \
    "output=$work" name=run >/dev/null
  grep -v '"evaluation"' "$work/run/metrics.jsonl" | tail -n +11 >>"$work/$1.jsonl"
  rm -r "$work/run"
}

# median NAME KEY
median() {
  grep -o "\"$2\":[^,}]*" "$work/$1.jsonl" | cut -d : -f 2 | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

for _ in 1 2 3; do
  run one 1 64
  run weak 2 128
  run strong 2 64
done
echo "| ranks x batch | samples/s | step ms | of it waiting for the other rank, ms | efficiency |"
echo "|---|---|---|---|---|"
one=$(median one samples_per_s)
for row in "one 1 x 64 1" "weak 2 x 64 2" "strong 2 x 32 2"; do
  read -r name ranks x batch count <<<"$row"
  rate=$(median "$name" samples_per_s)
  awk -v title="$ranks $x $batch" -v rate="$rate" -v step="$(median "$name" step_ms)" -v wait="$(median "$name" communication_ms)" \
    -v one="$one" -v count="$count" \
    'BEGIN { printf "| %s | %.1f | %.0f | %.1f | %.0f %% |\n", title, rate, step, wait, 100 * rate / one / count }'
done
