#!/usr/bin/env bash
# What a user sees who makes a mistake, or whose data or disk is damaged.
source "$(dirname "$0")/common.sh"
train=("$BIN/clip_train" --config "$TINY")

# Command line and configuration: exit code 2.
expect_failure 2 "--config is required" "$BIN/clip_train"
expect_failure 2 "config 'quickstrat.yaml' is neither a file nor a shipped config (did you mean quickstart.yaml?)" \
  "$BIN/clip_train" --config quickstrat.yaml
sed 's/warmup_steps/warmup_stepz/' "$TINY" >misspelt.yaml
line=$(grep -n warmup_stepz misspelt.yaml | cut -d : -f 1)
expect_failure 2 "misspelt.yaml:$line:3: optim.warmup_stepz: unknown key (did you mean warmup_steps?)" \
  "$BIN/clip_train" --config misspelt.yaml
expect_failure 2 "override 'train.steps=many': train.steps: expected an integer, found 'many'" "${train[@]}" train.steps=many
expect_failure 2 "override 'optim.lr=-1': optim.lr: -1 is out of range: must be greater than 0" "${train[@]}" optim.lr=-1
expect_failure 2 "model 'ViT-B-23' is neither a file nor a shipped config (did you mean ViT-B-32?)" "${train[@]}" model=ViT-B-23
expect_failure 2 "exactly one of steps, samples and epochs" "${train[@]}" train.epochs=1

# What is not there: exit code 2. Other data: 1.
expect_failure 2 "nowhere/00000.tar" "${train[@]}" data.train='nowhere/{00000..00001}.tar'
"$BIN/clip_data" synth shards --samples 40 --samples-per-shard 20 --test-samples 24 --image-size 32 >/dev/null
shard=shards/train/00000.tar
for shard_name in cut headless; do cp "$shard" $shard_name.tar; done
truncate -s $(($(stat -c %s cut.tar) / 2 - 100)) cut.tar
expect_failure 1 "cut.tar" "${train[@]}" data.train=cut.tar
mkdir members
tar -xf "$shard" -C members
first=$(ls members/*.png | head -n 1)
size=$(stat -c %s "$first")
cp "$first" good.png
truncate -s $((size / 2)) "$first"
(cd members && tar --format=ustar -cf ../damaged.tar $(ls))
expect_failure 1 "[damaged.tar] sample $(basename "$first" .png):" "${train[@]}" data.train=damaged.tar train.global_batch=20
expect_success "${train[@]}" name=skipping data.train=damaged.tar data.on_bad_sample=skip train.steps=3 optim.warmup_steps=1
# A PNG header may claim anything: 100000 x 100000 pixels, with a right checksum.
head -c 16 good.png >"$first"
printf '\x00\x01\x86\xa0\x00\x01\x86\xa0\x08\x02\x00\x00\x00\x27\x30\x9c\x9f' >>"$first"
tail -c +34 good.png >>"$first"
(cd members && tar --format=ustar -cf ../huge.tar $(ls))
expect_failure 1 "100000" "${train[@]}" data.train=huge.tar train.global_batch=20
cp good.png "$first"
rm "${first%.png}.txt"
(cd members && tar --format=ustar -cf ../captionless.tar $(ls))
expect_failure 1 "sample $(basename "$first" .png):" "${train[@]}" data.train=captionless.tar train.global_batch=20
expect_failure 1 "1 problems found" "$BIN/clip_data" validate captionless.tar

# Checkpoints.
expect_success "${train[@]}" name=run train.steps=14
expect_failure 2 "has checkpoints, the latest step_00000014; go on with --resume auto" "${train[@]}" name=run train.steps=14
expect_failure 2 "optim.lr: 0.0005, now 0.01" "${train[@]}" name=run train.steps=14 optim.lr=0.01 --resume auto
weights=runs/run/checkpoints/step_00000014/model.safetensors
printf '\xff' | dd of="$weights" bs=1 seek=100000 conv=notrunc status=none
expect_failure 1 "the file changed after it was written" "${train[@]}" name=run train.steps=14 --resume auto
grep -qF -- "--resume PATH with runs/run/checkpoints/step_00000007" err.txt || fail "the intact checkpoint is not named"
expect_failure 1 "nowhere" "$BIN/clip_eval" zero-shot --checkpoint nowhere --data shards
expect_failure 1 "nshards.txt" "$BIN/clip_eval" zero-shot --checkpoint runs/run/checkpoints/step_00000007 --data members
expect_success "$BIN/clip_eval" zero-shot --checkpoint runs/run/checkpoints/step_00000007 --data shards --output result.json
grep -q '"acc1"' result.json || fail "no acc1 in result.json"

# A loss that is not finite: the run stops and names the first bad tensor, or skips such steps and counts them.
diverging=("${train[@]}" optim.lr=1e20 optim.warmup_steps=0 optim.clip_norm=null train.steps=14)
expect_failure 1 "first gradient that is not finite: the gradient of " "${diverging[@]}" name=diverging
expect_success "${diverging[@]}" name=counting train.on_non_finite=skip
grep -q '"skipped_steps":[1-9]' runs/counting/metrics.jsonl || fail "skipped steps were not counted"

# A full disk while a checkpoint is written; needs the right to mount a small one.
mkdir small
if mount -t tmpfs -o size=80m tmpfs small 2>/dev/null; then
  trap 'umount "$WORK/small"; rm -rf "$WORK"' EXIT
  expect_success "${train[@]}" name=run output=small train.steps=14
  before=$(cat small/run/checkpoints/step_00000007/* | sha256sum)
  head -c $(($(df --output=avail -B1 small | tail -n 1) - 200000)) /dev/zero >small/filler
  expect_failure 1 "No space left on device" "${train[@]}" name=again output=small train.steps=14 \
    --resume small/run/checkpoints/step_00000007
  [[ $before == "$(cat small/run/checkpoints/step_00000007/* | sha256sum)" ]] || fail "a checkpoint changed"
  [[ -z $(ls small/again/checkpoints) ]] || fail "part of a checkpoint remained"
else
  echo "the full-disk check is left out: no right to mount a tmpfs here"
fi
echo "$checks checks passed"
