#!/usr/bin/env bash
# Locked-image tuning as a user runs it: train a tower, lock it, cache its embeddings, tune texts from them.
source "$(dirname "$0")/common.sh"

cat >tower.yaml <<'EOF'
name: tower
model: RN-tiny
data: {train: synthetic, synthetic: {samples: 96, test_samples: 32}}
train: {steps: 2, global_batch: 8}
optim: {warmup_steps: 1}
EOF
cat >lit.yaml <<'EOF'
name: live
model: RN-tiny
lock: Lu
image: {checkpoint: runs/tower}
data: {train: synthetic, crop: {kind: none}, synthetic: {samples: 96, test_samples: 32}}
train: {steps: 12, global_batch: 8}
optim: {warmup_steps: 2, lr: 1.0e-3}
checkpoint: {every_steps: 6, keep: 5}
log: {every_steps: 1}
eval: {every_steps: 6, zero_shot: {data: synthetic}}
EOF
train=("$BIN/clip_train" --config lit.yaml)

# same_tensors A B PREFIX EXCEPT: tensors whose names begin with PREFIX and don't hold EXCEPT have equal bits.
same_tensors() {
  python3 - "$@" <<'EOF' || fail "weights of $1 and $2 differ"
import json, struct, sys
def read(path):
    data = open(path, "rb").read()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    return {k: data[end + v["data_offsets"][0]:end + v["data_offsets"][1]] for k, v in header.items() if k != "__metadata__"}
a, b = read(sys.argv[1]), read(sys.argv[2])
names = [n for n in a if n.startswith(sys.argv[3]) and sys.argv[4] not in n]
different = [n for n in names if a[n] != b.get(n)]
print(len(names), "tensors;", "different:", different[:5])
sys.exit(not names or bool(different))
EOF
  checks=$((checks + 1))
}
weights() { echo "runs/$1/checkpoints/${2:-latest}/model.safetensors"; }
same_losses() {
  diff <(losses "runs/$1") <(losses "runs/$2") || fail "losses of $1 and $2 differ"
  checks=$((checks + 1))
}
near_losses() {
  paste -d ' ' <(losses "runs/$1") <(losses "runs/$2") | awk -v tolerance="$3" '
    { d = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if ($1 != $3 || d > tolerance) { print "step " $1 ": " $2 " and " $4; bad = 1 } }
    END { exit bad || NR == 0 }' || fail "losses of $1 and $2 differ by more than $3"
  checks=$((checks + 1))
}
says() {
  grep -qE -- "$1" "$2" || fail "$2 lacks '$1': $(cat "$2")"
  checks=$((checks + 1))
}

expect_success "$BIN/clip_train" --config tower.yaml
expect_success "${train[@]}"
says 'visual\..*locked' out.txt
says 'lock: Lu' runs/live/parameters.txt
same_tensors "$(weights tower)" "$(weights live)" visual. attnpool.c_proj
! grep -q 'visual.layer' <(strings -n 8 runs/live/checkpoints/latest/optimizer.safetensors) || fail "the optimiser keeps state of locked parameters"

# Cached embeddings: the same run to the last bit where they are fp32.
cache=("$BIN/clip_embed" cache --config lit.yaml)
expect_success "${cache[@]}" --output cache --dtype fp32 --part-rows 40
expect_success "${cache[@]}" --output cache --dtype fp32 --part-rows 40
says 'nothing to do' out.txt
expect_success "${train[@]}" name=cached image.cache=cache
same_losses live cached
same_tensors "$(weights live)" "$(weights cached)" '' '?'
diff <(grep -o '"top1_accuracy":[^,]*' runs/live/metrics.jsonl) <(grep -o '"top1_accuracy":[^,]*' runs/cached/metrics.jsonl) ||
  fail "evaluations differ"
expect_success "${cache[@]}" --output cache16 --dtype bf16
expect_success "${train[@]}" name=cached16 image.cache=cache16
near_losses live cached16 0.01

# Resuming, with and without the cache; ranks; accumulation; micro-batches.
expect_success "${train[@]}" name=again --resume "runs/cached/checkpoints/step_00000006" image.cache=cache
same_tensors "$(weights cached)" "$(weights again)" '' '?'
expect_success "${train[@]}" name=live_again --resume "runs/cached/checkpoints/step_00000006"
same_tensors "$(weights cached)" "$(weights live_again)" '' '?'
expect_success "${train[@]}" name=two --nproc 2 image.cache=cache
near_losses live two 1e-5
expect_success "${train[@]}" name=parts train.accumulate=2 image.batch_size=3
near_losses live parts 1e-5

# Other towers, letters and optimisers.
expect_success "${train[@]}" name=groups image.unlocked_groups=1 optim.name=adafactor
same_tensors "$(weights tower)" "$(weights groups)" visual.layer attnpool
expect_success "${train[@]}" name=late image.unlock_at='8 steps' optim.name=lion optim.lr=1e-4
same_tensors "$(weights tower)" "$(weights late step_00000006)" visual. attnpool.c_proj
expect_success "${train[@]}" name=late_again --resume runs/late/checkpoints/step_00000006 image.unlock_at='8 steps' \
  optim.name=lion optim.lr=1e-4
same_tensors "$(weights late)" "$(weights late_again)" '' '?'
expect_success "${train[@]}" name=Uu lock=Uu
expect_success "${train[@]}" name=uu lock=uu image.checkpoint=
expect_success "${train[@]}" name=frozen lock=Uu 'optim.rules=[{match: "visual\\..*", freeze: true}, {match: ".*ln_.*", lr: 0.5}]'
same_tensors "$(weights tower)" "$(weights frozen)" visual. '?'

# What must not pass.
sed 's/name: tower/name: other/; s/steps: 2/steps: 3/' tower.yaml >other.yaml
expect_success "$BIN/clip_train" --config other.yaml
expect_failure 2 'image tower' "${train[@]}" name=x image.cache=cache image.checkpoint=runs/other
expect_failure 2 'preprocessing' "${train[@]}" name=x image.cache=cache preprocess.interpolation=bilinear
expect_failure 2 'data' "${train[@]}" name=x image.cache=cache data.synthetic.samples=97
expect_failure 2 'image.checkpoint: letter L in lock' "${train[@]}" name=x image.checkpoint=
expect_failure 2 'image.checkpoint: letter u in lock' "${train[@]}" name=x lock=uu
expect_failure 2 'image.cache: needs an image tower that stays locked' "${train[@]}" name=x image.cache=cache lock=Uu
expect_failure 2 'locked at random values' "${train[@]}" name=x model='{name: RN-tiny, embed_dim: 24}' image.lock_head=true
expect_failure 2 'matches no parameter' "${train[@]}" name=x 'optim.rules=[{match: "visuel.*", lr: 2}]'
expect_failure 2 'unlocked_groups' "${train[@]}" name=x image.unlocked_groups=7
expect_failure 2 'image.checkpoint: runs/nowhere' "${cache[@]}" --output y image.checkpoint=runs/nowhere

# A shipped recipe without its files says all it needs at once.
expect_failure 2 "run 'vit_b16_lit' needs what is not there" "$BIN/clip_train" --config vit_b16_lit.yaml
for key in image.checkpoint text.checkpoint data.train eval.zero_shot.data; do says "^  $key: " err.txt; done
says 'https://storage.googleapis.com/vit_models/augreg' err.txt

echo "$checks checks passed"
