#!/usr/bin/env bash
# Lu, Uu and uu side by side on captioned CIFAR-10 shards, at equal pairs seen: a tower is trained on one half of the
# shards, the text (and, where it is not locked, the image) tower on the other half.
#   lit_cifar10.sh BIN_FOLDER DATA     DATA: a folder with train/{00000..00049}.tar and a test split (CLIP_benchmark)
set -euo pipefail
bin=$(realpath "$1") data=$(realpath "$2")
common=("eval.zero_shot.data=$data" log.tensorboard=false log.every_steps=1)
second=("data.train=$data/train/{00025..00049}.tar" "${common[@]}" train.steps=400)
run() { # NAME ARGUMENTS...
  local start=$SECONDS
  "$bin/clip_train" --resume auto "${@:2}" name="$1" >"$1.log" 2>&1 || { tail -n 5 "$1.log" >&2; exit 1; }
  echo "$1: $((SECONDS - start)) s; $(grep zero-shot "$1.log" | tail -n 1)"
}
run cifar10_tower --config cifar10_tower.yaml "data.train=$data/train/{00000..00024}.tar" "${common[@]}"
start=$SECONDS
"$bin/clip_embed" cache --config cifar10_lit.yaml "${second[@]}" | tail -n 1
echo "cache: $((SECONDS - start)) s"
run Lu_cached --config cifar10_lit.yaml "${second[@]}"
run Lu_live --config cifar10_lit.yaml "${second[@]}" image.cache=
run Uu --config cifar10_lit.yaml "${second[@]}" image.cache= lock=Uu data.crop.kind=random_resized
run uu --config cifar10_lit.yaml "${second[@]}" image.cache= lock=uu image.checkpoint= data.crop.kind=random_resized
python3 - <<'EOF'
import json
def losses(name):
    rows = [json.loads(line) for line in open(f"runs/{name}/metrics.jsonl")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row and row["step"] <= 100}
live, cached = losses("Lu_live"), losses("Lu_cached")
worst = max(live, key=lambda step: abs(live[step] - cached[step]))
print(f"live and cached losses of the first 100 steps ({len(live)} logged): largest difference "
      f"{abs(live[worst] - cached[worst]):.2g} at step {worst} (loss {live[worst]:.4f})")
EOF
