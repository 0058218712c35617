#!/usr/bin/env bash
# clip_embed: every kind of input, what it refuses, and that a run which is killed at random moments and repeated writes
# the bytes of a run that was never stopped.
source "$(dirname "$0")/common.sh"
seed=${KILL_TEST_SEED:-$RANDOM}
echo "seed $seed"
RANDOM=$seed
export OMP_NUM_THREADS=1  # the model is so small that more threads only wait for each other

expect_success "$BIN/clip_train" --config "$TINY" train.steps=6
model=(--checkpoint runs/tiny)
"$BIN/clip_data" synth shards --samples 3000 --samples-per-shard 1000 --test-samples 24 --image-size 48 >/dev/null
list='shards/train/{00000..00002}.tar'

# The rows of a list of names do not depend on where the images lie: shards, a folder, a list of files.
expect_success "$BIN/clip_embed" images shards/train/00000.tar "${model[@]}" --output from_shards
[[ $(wc -l <from_shards/names.txt) == 1000 ]] || fail "not 1000 names"
mkdir -p folder/b
tar -xf shards/train/00000.tar -C folder
for file in folder/*[5-9].png; do mv "$file" folder/b/; done
echo text >folder/notes.txt
expect_success "$BIN/clip_embed" images folder "${model[@]}" --output from_folder --workers 3
[[ $(head -n 1 from_folder/names.txt) == *0.png && $(tail -n 1 from_folder/names.txt) == b/*9.png ]] || fail "order of a folder"
find folder -name '*.png' -printf '%f %p\n' | sort | cut -d ' ' -f 2 >files.txt
expect_success "$BIN/clip_embed" images files.txt "${model[@]}" --output from_list/features.safetensors --batch-size 64
cmp from_list/features.names.txt files.txt || fail "names of a list"
data_of() { tail -c $((1000 * 16 * 4)) "$1"; }
cmp <(data_of from_shards/features.safetensors) <(data_of from_list/features.safetensors) || fail "rows of shards and files differ"

# Texts: a file, and the captions of shards.
expect_success "$BIN/clip_embed" texts shards/train/00000.tar "${model[@]}" --output captions --raw
for key in $(cat from_shards/names.txt); do cat "folder/$key.txt"; echo; done >captions.txt
expect_success "$BIN/clip_embed" texts captions.txt "${model[@]}" --output lines.safetensors --raw
cmp lines.names.txt captions.txt || fail "names of texts"
cmp <(data_of captions/features.safetensors) <(data_of lines.safetensors) || fail "rows of captions and lines differ"

# Images that can't be read.
mkdir bad
cp folder/*00.png bad/
good=$(ls bad | wc -l)
echo "no image" >bad/broken.png
echo missing.jpg >missing.txt
expect_failure 1 "[bad/broken.png]: image: expected a JPEG, PNG, WebP, GIF or BMP" "$BIN/clip_embed" images bad "${model[@]}" --output bad_out
expect_success "$BIN/clip_embed" images bad "${model[@]}" --output skipped --on-bad-image skip
grep -q '1 inputs left out' out.txt || fail "skipped images are not counted: $(cat out.txt)"
grep -q '  broken.png: image: expected' out.txt || fail "skipped images are not named: $(cat out.txt)"
[[ $(wc -l <skipped/names.txt) == "$good" ]] || fail "a skipped image has a row"
expect_failure 1 "[missing.jpg]: the file does not exist" "$BIN/clip_embed" images missing.txt "${model[@]}" --output bad_out
expect_failure 1 "[nowhere] is neither a file, a folder nor a list of shards" "$BIN/clip_embed" images nowhere "${model[@]}" --output bad_out

# Killed and repeated.
settings=(--batch-size 2 --part-rows 100)
embed=("$BIN/clip_embed" images "$list" "${model[@]}")
expect_success "${embed[@]}" "${settings[@]}" --output straight
parts() { ls killed/features.safetensors.parts/part_*.safetensors 2>/dev/null | wc -l; }
before=-1
for kill_at in $((1 + RANDOM % 5)) $((8 + RANDOM % 8)) $((20 + RANDOM % 8)); do
  "${embed[@]}" "${settings[@]}" --output killed >>killed.log 2>&1 &
  pid=$!
  for _ in $(seq 3000); do
    [[ $(parts) -lt $kill_at ]] || break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.01
  done
  sleep "0.0$((RANDOM % 10))"
  kill -9 "$pid" 2>/dev/null || fail "it ended before it could be killed"
  wait "$pid" 2>/dev/null || true
  echo "killed with $(parts) parts written"
  [[ $(parts) -gt $before ]] || fail "no progress"
  before=$(parts)
done
expect_failure 2 "was made with other settings: dtype: fp32, now fp16; inputs_per_part: 100, now 50" \
  "${embed[@]}" --output killed --dtype fp16 --part-rows 50
expect_success "${embed[@]}" "${settings[@]}" --output killed
grep -q "going on at input ${before}00" out.txt || fail "it did not go on after part $before: $(cat out.txt)"
cmp straight/features.safetensors killed/features.safetensors || fail "features differ"
cmp straight/names.txt killed/names.txt || fail "names differ"
[[ $(ls killed) == "$(printf 'features.safetensors\nnames.txt')" ]] || fail "left behind: $(ls killed)"
expect_success "${embed[@]}" "${settings[@]}" --output killed
grep -q "nothing to do" out.txt || fail "a complete file is made again"
expect_success "$BIN/clip_train" --config "$TINY" name=other seed=5 train.steps=6
expect_failure 2 "model_sha256" "$BIN/clip_embed" images "$list" --checkpoint runs/other \
  "${settings[@]}" --output killed

# A stop signal ends it cleanly.
"${embed[@]}" "${settings[@]}" --output stopped >stopped.log 2>&1 &
pid=$!
for _ in $(seq 3000); do
  [[ $(ls stopped/features.safetensors.parts 2>/dev/null | wc -l) -lt 2 ]] || break
  sleep 0.01
done
kill -TERM "$pid"
wait "$pid" || fail "SIGTERM: exited with $?"
grep -q 'stopped on request' stopped.log || fail "SIGTERM: $(cat stopped.log)"
echo "$checks checks passed"
