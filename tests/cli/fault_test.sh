#!/usr/bin/env bash
# Random ranks are killed at random moments; every restart goes on, and the end has the bits of the undisturbed run.
# FAULT_KILLS and FAULT_STEPS make it longer (30 and 3000: some minutes), FAULT_SEED repeats one.
source "$(dirname "$0")/common.sh"
seed=${FAULT_SEED:-$RANDOM}
kills=${FAULT_KILLS:-3}
steps=${FAULT_STEPS:-400}
ranks=2
echo "seed $seed"
RANDOM=$seed

vit='model={embed_dim: 16, vision_cfg: {image_size: 32, patch_size: 8, layers: 2, width: 16, head_width: 8},
  text_cfg: {context_length: 16, width: 32, heads: 2, layers: 1}}'
train=("$BIN/clip_train" --config "$TINY" --nproc "$ranks" "$vit" "train.steps=$steps" eval.every_steps=null
  distributed.timeout_seconds=20)

expect_success "${train[@]}" name=straight

done_kills=0
: >restarts.txt
while ((done_kills < kills)); do
  "${train[@]}" name=killed --resume auto >killed.log 2>killed.err &
  launcher=$!
  processes=()
  while ((${#processes[@]} < ranks)) && kill -0 "$launcher" 2>/dev/null; do
    sleep 0.02
    mapfile -t processes < <(pgrep -P "$launcher" || true)
  done
  sleep "$((RANDOM % 2)).$((RANDOM % 900 + 100))"
  victim=$((RANDOM % ranks))
  kill -9 "${processes[$victim]}" 2>/dev/null || true
  status=0
  wait "$launcher" || status=$?
  if ((status == 0)); then
    echo "the run ended after $done_kills kills"
    break
  fi
  head -n 1 killed.err | grep -q "rank . (process ${processes[$victim]}) was killed by signal 9" ||
    fail "the killed rank is not named first: $(cat killed.err)"
  ! pgrep -P "$launcher" >/dev/null || fail "a rank outlived its launcher"
  ! ls -d runs/killed/checkpoints/step_????????/ 2>/dev/null | while read -r folder; do
    [[ -f $folder/state.json ]] || echo "$folder is incomplete"
  done | grep . || fail "a checkpoint is incomplete"
  done_kills=$((done_kills + 1))
  grep -o 'resumed at step [0-9]*' killed.log | cut -d ' ' -f 4 >>restarts.txt || true
done
((done_kills > 0)) || fail "the run ended before it was killed once: raise FAULT_STEPS"
expect_success "${train[@]}" name=killed --resume auto

final=checkpoints/$(printf 'step_%08d' "$steps")
for file in model optimizer; do
  cmp "runs/straight/$final/$file.safetensors" "runs/killed/$final/$file.safetensors" || fail "$file differs"
done
diff <(losses runs/straight) <(losses runs/killed) || fail "losses differ"
echo "$done_kills kills of random ranks, restarts at steps $(tr '\n' ' ' <restarts.txt)of $steps: weights, optimiser and losses are the same"
