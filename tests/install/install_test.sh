#!/usr/bin/env bash
# Installs the library, moves the installation, and builds and runs a program of its own against it.
# usage: install_test.sh BUILD_DIRECTORY SOURCE_DIRECTORY
source "$(dirname "$0")/../cli/common.sh"
expect_success cmake --install "$BIN" --prefix "$WORK/first"
mv first moved
expect_success cmake -S "$SOURCE/tests/install" -B program -DCMAKE_PREFIX_PATH="$WORK/moved" -DCMAKE_BUILD_TYPE=Release
expect_success cmake --build program
expect_success moved/bin/clip_train --config "$TINY" train.steps=5
expect_success moved/bin/clip_data synth shards --samples 4 --test-samples 4 --image-size 32
tar -xf shards/train/00000.tar
expect_success cmake -S "$SOURCE/docs/examples" -B examples -DCMAKE_PREFIX_PATH="$WORK/moved" -DCMAKE_BUILD_TYPE=Release
expect_success cmake --build examples
expect_success examples/zero_shot runs/tiny 000000000.png "a red circle" "a blue square"

# Another LibTorch than the one the library was built with is refused.
mkdir -p torch/include/torch/headeronly torch/include/torch/csrc/api/include/torch torch/lib
touch torch/include/torch/csrc/api/include/torch/torch.h torch/lib/lib{torch,torch_cpu,torch_cuda,c10,c10_cuda}.so
printf '#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 10\n#define TORCH_VERSION_PATCH 0\n' \
  >torch/include/torch/headeronly/version.h
! cmake -S "$SOURCE/tests/install" -B wrong -DCMAKE_PREFIX_PATH="$WORK/moved" -DLIBTORCH_ROOT="$WORK/torch" >wrong.txt 2>&1 ||
  fail "another LibTorch was accepted"
grep -q 'Found unsuitable version "2.10.0"' wrong.txt || fail "the wrong version is not named: $(cat wrong.txt)"

expect_success program/uses_contrastive runs/tiny/checkpoints/latest 000000000.png
grep -q '^similarity -\?[0-9.e-]*$' out.txt || fail "the program said: $(cat out.txt)"
echo "$checks checks passed"
