#!/usr/bin/env bash
# A run that is killed at random moments and resumed ends with the bits of a run that was never stopped.
source "$(dirname "$0")/common.sh"
seed=${KILL_TEST_SEED:-$RANDOM}
echo "seed $seed"
RANDOM=$seed

train=("$BIN/clip_train" --config "$TINY")  # not a function: $! must be the program itself

expect_success "${train[@]}" name=straight
final=checkpoints/step_00000060
[[ -f runs/straight/$final/model.safetensors ]] || fail "no final checkpoint"

# Kills the run once it has logged the given number of steps.
kill_after() {
  local lines=$1 pid
  "${train[@]}" name=killed --resume auto >>killed.log 2>&1 &
  pid=$!
  for _ in $(seq 3000); do
    [[ $(cat runs/killed/metrics.jsonl 2>/dev/null | wc -l) -lt $lines ]] || break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.02
  done
  sleep "0.0$((RANDOM % 10))"
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

for after in $((2 + RANDOM % 8)) $((12 + RANDOM % 12)) $((30 + RANDOM % 25)); do
  kill_after "$after"
  echo "killed; checkpoints: $(ls runs/killed/checkpoints 2>/dev/null | tr '\n' ' ')"
  ! ls -d runs/killed/checkpoints/step_????????/ 2>/dev/null | while read -r folder; do
    [[ -f $folder/state.json ]] || echo "$folder is incomplete"
  done | grep . || fail "a checkpoint is incomplete"
done
expect_success "${train[@]}" name=killed --resume auto

cmp "runs/straight/$final/model.safetensors" "runs/killed/$final/model.safetensors" || fail "weights differ"
cmp "runs/straight/$final/optimizer.safetensors" "runs/killed/$final/optimizer.safetensors" || fail "optimiser states differ"
[[ $(losses runs/straight | wc -l) == 60 ]] || fail "not 60 steps were logged"
diff <(losses runs/straight) <(losses runs/killed) || fail "losses differ"

# A stop signal saves and exits with 0.
"${train[@]}" name=stopped train.steps=100000 >stopped.log 2>&1 &
pid=$!
for _ in $(seq 3000); do
  [[ $(cat runs/stopped/metrics.jsonl 2>/dev/null | wc -l) -lt 3 ]] || break
  sleep 0.02
done
kill -TERM "$pid"
wait "$pid" || fail "SIGTERM: exited with $?"
step=$(losses runs/stopped | tail -n 1 | cut -d ' ' -f 1)
[[ -d runs/stopped/checkpoints/$(printf 'step_%08d' "$step") ]] || fail "SIGTERM: no checkpoint of step $step"
# What a model draws at random in training is drawn again: patch dropout, from a checkpoint in the middle.
dropping=('model={embed_dim: 16, vision_cfg: {image_size: 32, patch_size: 8, layers: 2, width: 16, head_width: 8,
  patch_dropout: 0.5}, text_cfg: {context_length: 16, width: 32, heads: 2, layers: 1}}' train.steps=20)
"${train[@]}" "${dropping[@]}" name=whole checkpoint.every_steps=10 >/dev/null
"${train[@]}" "${dropping[@]}" name=half checkpoint.every_steps=10 --resume runs/whole/checkpoints/step_00000010 >/dev/null
for name in whole half; do final_weights+=("runs/$name/checkpoints/latest/model.safetensors"); done
cmp "${final_weights[@]}" || fail "patch dropout differs after resuming"
echo "5 checks passed: weights, optimiser, losses, SIGTERM, patch dropout"
