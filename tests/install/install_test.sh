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
expect_success program/uses_contrastive runs/tiny/checkpoints/latest 000000000.png
grep -q '^similarity -\?[0-9.e-]*$' out.txt || fail "the program said: $(cat out.txt)"
echo "$checks checks passed"
