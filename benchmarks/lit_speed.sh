#!/usr/bin/env bash
# A step of locked-image tuning beside open_clip's: ViT-B-16 with its text tower, captions of 22 tokens, in turn.
#   lit_speed.sh BIN_FOLDER PYTHON [ROUNDS]     PYTHON: an interpreter that has open_clip_torch
set -euo pipefail
bin=$1 python=$2 rounds=${3:-3}
here=$(dirname "$0")
batch=32 tokens=22 steps=4
ours() { "$bin/clip_bench" train --model ViT-B-16 --precision "$1" --batch-size $batch --tokens $tokens --steps "$3" --image-tower "$2"; }
for precision in fp32 amp_bf16; do
  for ((i = 0; i < rounds; ++i)); do
    "$python" -W ignore "$here/open_clip_step.py" ViT-B-16 "${precision#amp_}" $batch $steps $tokens --lock
    ours $precision locked $steps
    ours $precision cached 10
  done
  "$python" -W ignore "$here/open_clip_step.py" ViT-B-16 "${precision#amp_}" $batch 2 $tokens
  ours $precision trained 2
done
