#!/usr/bin/env bash
# However a batch is split over ranks and accumulation, the run is the same; checkpoints fit any number of ranks.
source "$(dirname "$0")/common.sh"

vit='model={embed_dim: 16, vision_cfg: {image_size: 32, patch_size: 8, layers: 2, width: 16, head_width: 8,
  patch_dropout: 0.25}, text_cfg: {context_length: 16, width: 32, heads: 2, layers: 1}}'
train=("$BIN/clip_train" --config "$TINY" "$vit" train.steps=12 checkpoint.every_steps=6 checkpoint.keep=5
  distributed.timeout_seconds=20)
weights=checkpoints/latest/model.safetensors

# same_run A B: losses within rounding (single precision over 12 steps) and equal evaluations.
same_run() {
  paste -d ' ' <(losses "runs/$1") <(losses "runs/$2") | awk -v names="$1 $2" '
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if ($1 != $3 || d > 1e-5) { print names ": step " $1 ": " $2 " and " $4; bad = 1 } }
    END { exit bad || NR != 12 }' || fail "$1 and $2 differ"
  diff <(grep -o '"top1_accuracy":[^,]*' "runs/$1/metrics.jsonl") <(grep -o '"top1_accuracy":[^,]*' "runs/$2/metrics.jsonl") ||
    fail "evaluations of $1 and $2 differ"
  checks=$((checks + 1))
}

same_bits() {
  cmp "runs/$1/$weights" "runs/$2/$weights" || fail "weights of $1 and $2 differ"
  checks=$((checks + 1))
}

expect_success "${train[@]}" name=one
expect_success "${train[@]}" name=two --nproc 2 distributed.check_every_steps=1
expect_success "${train[@]}" name=four --nproc 4 threads=0
expect_success "${train[@]}" name=accumulated --nproc 2 train.accumulate=2
for other in two four accumulated; do same_run one $other; done

expect_success "${train[@]}" name=sharded --nproc 2 distributed.shard_optimizer=true distributed.bucket_mb=1
same_bits two sharded
[[ -f runs/sharded/checkpoints/latest/optimizer-00002-of-00002.safetensors ]] || fail "the optimiser's state is not in parts"
expect_success "${train[@]}" name=recomputed --nproc 2 model.checkpoint_activations=true checkpoint.background=false
same_bits two recomputed
expect_success "${train[@]}" name=bf16 --nproc 2 distributed.gradient_dtype=bf16 distributed.check_every_steps=1

# Half a run by two ranks with parts of the state goes on with any number.
for ranks in 1 2 4; do
  expect_success "${train[@]}" name=half$ranks --nproc 2 distributed.shard_optimizer=true train.steps=12
  rm -r runs/half$ranks/checkpoints/step_00000012 runs/half$ranks/checkpoints/latest
  expect_success "${train[@]}" name=half$ranks --nproc $ranks --resume auto
  grep -q "resumed at step 6" out.txt || fail "half$ranks did not resume: $(cat out.txt)"
  same_run one half$ranks
done
same_bits two half2

expect_failure 2 "train.global_batch: 8 samples can't be split into 3 ranks x 1 equal parts" "${train[@]}" name=uneven --nproc 3

# Ranks that were started with other settings, by hand.
port=$((20000 + RANDOM % 10000))
environment=(WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port)
env "${environment[@]}" RANK=1 "${train[@]}" name=mixed optim.lr=0.5 >other.log 2>&1 &
expect_failure 2 "rank 1 has other training options than rank 0" env "${environment[@]}" RANK=0 "${train[@]}" name=mixed
! wait $! || fail "rank 1 with other settings did not fail"

# A bad sample is met by one rank; it says so first, and the others end with it.
"$BIN/clip_data" synth shards --samples 64 --test-samples 16 --image-size 32 >/dev/null
printf 'not an image' >bad.png && printf 'a caption' >bad.txt
tar -cf shards/train/99999.tar bad.png bad.txt
expect_failure 1 "[shards/train/99999.tar] sample bad: image: expected a JPEG" \
  "${train[@]}" name=bad --nproc 2 "data.train=shards/train/{00000,99999}.tar" train.steps=20
head -n 1 err.txt | grep -q "rank [01]: .*99999.tar" || fail "the bad sample is not named first: $(cat err.txt)"
expect_success "${train[@]}" name=skipped --nproc 2 "data.train=shards/train/{00000,99999}.tar" data.on_bad_sample=skip train.steps=20
grep -q '"undecodable image": 1' runs/skipped/checkpoints/latest/state.json || fail "the bad sample of a rank is not counted"
echo "$checks checks passed"
