#!/usr/bin/env bash
# clip_embed cache: what it refuses, that a run which is stopped or killed and repeated writes the bytes of a run that was
# never stopped, and that training from the cache has the losses of live training.
source "$(dirname "$0")/common.sh"
export OMP_NUM_THREADS=1  # the model is so small that more threads only wait for each other

expect_success "$BIN/clip_train" --config "$TINY" train.steps=6
"$BIN/clip_data" synth shards --samples 600 --samples-per-shard 200 --test-samples 24 --image-size 48 >/dev/null
list='shards/train/{00000..00002}.tar'
run=(--config "$TINY" lock=Lu "image.checkpoint=runs/tiny" "data.train=$list" data.crop.kind=none eval.zero_shot.data= eval.every_steps=null)
cache=("$BIN/clip_embed" cache "${run[@]}" --batch-size 16 --part-rows 100)

# What it refuses.
expect_failure 2 "the config names no folder for the cache; give --output" "${cache[@]}"
expect_failure 2 "data.crop.kind: random_resized gives another crop at every step" "${cache[@]}" data.crop.kind=random_resized --output refused
expect_failure 2 "2 views of an image would all be the same" "${cache[@]}" --views 2 --output refused
mkdir occupied && touch occupied/notes.txt
expect_failure 2 "[occupied] holds other files (notes.txt)" "${cache[@]}" --output occupied

# Complete, then repeated.
expect_success "${cache[@]}" --output straight --dtype fp32
grep -q '600 samples in straight' out.txt || fail "no report: $(cat out.txt)"
expect_success "${cache[@]}" --output straight --dtype fp32
grep -q 'nothing to do: straight is complete, its checksums are right' out.txt || fail "a complete cache is made again"
expect_failure 2 "[straight] holds a cache that was made otherwise: dtype: fp32, now fp16" "${cache[@]}" --output straight

# Killed and repeated, with other threads.
slow=("$BIN/clip_embed" cache "${run[@]}" --dtype fp32 --batch-size 1 --part-rows 10)
parts() { ls killed/part_*.safetensors 2>/dev/null | wc -l; }
"${slow[@]}" --output killed >killed.log 2>&1 &
pid=$!
for _ in $(seq 3000); do
  [[ $(parts) -lt 2 ]] || break
  kill -0 "$pid" 2>/dev/null || break
  sleep 0.01
done
kill -STOP "$pid"
expect_failure 2 "[killed] is being written by another process" "${slow[@]}" --output killed
kill -9 "$pid" 2>/dev/null || fail "it ended before it could be killed"
wait "$pid" 2>/dev/null || true
before=$(parts)
expect_failure 2 "killed is not complete" "$BIN/clip_train" "${run[@]}" image.cache=killed name=incomplete train.steps=6
expect_success "${slow[@]}" --output killed --workers 3
grep -q "going on at sample ${before}0\b" out.txt || fail "it did not go on after part $before: $(cat out.txt)"
expect_success "${slow[@]}" --output one_by_one
diff -r -x .lock killed one_by_one || fail "the files differ from those of a run that was never stopped"

# A stop signal ends it cleanly.
"${slow[@]}" --output stopped >stopped.log 2>&1 &
pid=$!
for _ in $(seq 3000); do
  [[ $(ls stopped/part_*.safetensors 2>/dev/null | wc -l) -lt 1 ]] || break
  sleep 0.01
done
kill -TERM "$pid"
wait "$pid" || fail "SIGTERM: exited with $?"
grep -q 'stopped on request' stopped.log || fail "SIGTERM: $(cat stopped.log)"

# Bad samples: named, refused, or left out and counted.
mkdir bad && tar -xf shards/train/00000.tar -C bad
first=$(ls bad/*.png | head -n 1)
echo "no image" >"$first"
(cd bad && tar -cf ../bad.tar *)
expect_failure 1 "image: expected a JPEG, PNG, WebP, GIF or BMP" "${cache[@]}" data.train=bad.tar --output bad_cache
expect_failure 1 "at most 0 samples may be bad" "${cache[@]}" data.train=bad.tar --output bad_cache --on-bad-sample skip data.max_bad_samples=0
expect_success "${cache[@]}" data.train=bad.tar --output bad_cache --on-bad-sample skip
grep -q '1 samples are missing' out.txt || fail "bad samples are not counted: $(cat out.txt)"
grep -q "  $(basename "${first%.png}"): image: expected" out.txt || fail "bad samples are not named: $(cat out.txt)"

# Training from it: the same losses as live, with missing samples too; another tower or preprocessing is refused.
train=("$BIN/clip_train" "${run[@]}" train.steps=12 checkpoint.every_steps=6)
same_losses() {
  losses "runs/$1" >a.txt
  losses "runs/$2" >b.txt
  [[ $(wc -l <a.txt) == 12 ]] || fail "not 12 steps: $(cat a.txt)"
  paste a.txt b.txt | awk '{ d = $2 - $4; if (d < 0) d = -d; if ($1 != $3 || d > 1e-5 * $2) exit 1 }' ||
    fail "losses of $1 and $2 differ: $(paste a.txt b.txt)"
  checks=$((checks + 1))
}
expect_success "${train[@]}" name=live
expect_success "${train[@]}" name=cached image.cache=straight
same_losses live cached
expect_success "${train[@]}" data.train=bad.tar data.on_bad_sample=skip name=live_bad
expect_success "${cache[@]}" data.train=bad.tar --output bad_fp32 --on-bad-sample skip --dtype fp32
expect_success "${train[@]}" data.train=bad.tar data.on_bad_sample=skip name=cached_bad image.cache=bad_fp32
same_losses live_bad cached_bad
expect_success "${train[@]}" --nproc 2 name=ranks image.cache=straight
same_losses live ranks
expect_success "$BIN/clip_train" --config "$TINY" name=other seed=5 train.steps=6
expect_failure 2 "was made with other weights of the image tower: sha256" \
  "${train[@]}" name=mismatch image.cache=straight image.checkpoint=runs/other
expect_failure 2 "was made with other preprocessing: 'resized (shortest, bicubic) to 32" \
  "${train[@]}" name=mismatch image.cache=straight preprocess.interpolation=bilinear
expect_failure 2 "other training data: sha256" "${train[@]}" name=mismatch image.cache=bad_fp32
echo "$checks checks passed"
