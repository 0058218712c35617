#!/usr/bin/env bash
# clip_bench: what each subcommand prints, and what it refuses. No figure is judged.
source "$(dirname "$0")/common.sh"
export OMP_NUM_THREADS=1
"$BIN/clip_data" synth shards --samples 120 --samples-per-shard 60 --test-samples 24 --image-size 32 >/dev/null
shards='shards/train/{00000..00001}.tar'
cat >tiny.json <<'JSON'
{"embed_dim": 16,
 "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2},
 "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}
JSON
sed 's/"layers": 2}}/"layers": 2}, "init_logit_bias": -10}/; s/49408/64/' tiny.json >small_vocabulary.json
train=("$BIN/clip_bench" train --model tiny.json --batch-size 8 --steps 2 --threads 1)

# says PYTHON: an expression about `results`, the JSON objects of out.txt, that must be true.
says() {
  python3 -c "
import json, sys
results = [json.loads(line) for line in open('out.txt')]
r = results[0]
sys.exit(0 if ($1) else 1)" || fail "not so: $1, in $(cat out.txt)"
  checks=$((checks + 1))
}

expect_success "${train[@]}" --tokens 7
says "len(results) == 1 and r['batch'] == 8 and r['tokens'] == 7 and r['steps'] == 2 and r['samples_per_s'] > 0"
says "'profile' not in r and r['peak_memory_mb'] > 10 and r['step_s_min'] <= r['step_s_median']"

# The parts of a profile are all of the step, in falling order, and products of matrices have a rate.
for precision in fp32 amp_bf16; do
  expect_success "${train[@]}" --tokens 7 --precision $precision --profile
  says "abs(sum(p['share'] for p in r['profile']['parts']) - 1) < 0.01"
  says "{'matrix products', 'attention', 'norms', 'activation', 'optimiser', 'copies and casts', 'embedding', 'loss', 'data wait'} <= {p['name'] for p in r['profile']['parts']}"
  says "[p['ms'] for p in r['profile']['parts']] == sorted((p['ms'] for p in r['profile']['parts']), reverse=True)"
  says "len(r['profile']['operators']) == 10 and all(o['part'] and o['calls'] > 0 for o in r['profile']['operators'])"
  says "next(p for p in r['profile']['parts'] if p['name'] == 'matrix products')['gflop_per_s'] > 0"
  grep -q '^part of a step' err.txt && grep -q '^matrix products' err.txt || fail "no table: $(cat err.txt)"
done

# Batches from shards, and from no images at all.
expect_success "${train[@]}" --data "$shards" --workers 1 --profile
says "r['data'] == '$shards' and 'tokens' not in r and r['samples_per_s'] > 0"
expect_success "${train[@]}" --image-tower cached --tokens 16
expect_success "${train[@]}" --image-tower locked --tokens 16
expect_failure 2 "--tokens excludes --data" "${train[@]}" --data "$shards" --tokens 7
expect_failure 2 "--tokens must be between 2 and 16" "${train[@]}" --tokens 17
expect_failure 2 "--data has no features for --image-tower cached" "${train[@]}" --data "$shards" --image-tower cached
expect_failure 2 "--data: [small_vocabulary.json] has 64 tokens, CLIP's tokenizer 49408" \
  "$BIN/clip_bench" train --model small_vocabulary.json --batch-size 8 --data "$shards"
expect_failure 1 "nowhere.tar (No such file or directory)" "${train[@]}" --data nowhere.tar

# The loader: one result for each number of workers, whole epochs, memory.
loader=("$BIN/clip_bench" loader "$shards" --image-size 32 --batch-size 50)
expect_success "${loader[@]}" --workers 1,2 --epochs 2
says "[r['workers'] for r in results] == [1, 2] and all(r['samples'] == 200 and r['images_per_s'] > 0 for r in results)"
expect_success "${loader[@]}" --samples 250
says "r['epochs'] == 3 and r['samples'] == 300 and r['images_per_s_overall'] > 0"
says "abs(r['memory_mb_growth'] - r['memory_mb_at_end'] + r['memory_mb_after_tenth']) < 0.01 and r['memory_mb_peak'] >= r['memory_mb_at_end'] - 1"
expect_failure 2 "--batch-size is larger than the data set" "$BIN/clip_bench" loader "$shards" --batch-size 121
expect_failure 2 "--workers: Value 0 not in range" "${loader[@]}" --workers 0
expect_failure 2 "--epochs excludes --samples" "${loader[@]}" --samples 3 --epochs 1

printf 'a photo of a cat\na photo of a dog\n' >captions.txt
expect_success "$BIN/clip_bench" tokenizer captions.txt
says "r['captions'] == 2 and r['captions_per_s'] > 0"
expect_success "$BIN/clip_bench" loss --rows 64 --dim 16 --repetitions 2
says "r['rows'] == 64 and r['seconds_min'] <= r['seconds_median']"

# The comparison with open_clip says what it lacks; its rows and how they are put together need no peer.
compare=(python3 "$SOURCE/benchmarks/compare_open_clip.py")
expect_success "${compare[@]}" --list
grep -qx vit_b32_bf16_22 out.txt || fail "--list says: $(cat out.txt)"
expect_failure 1 "clip_bench] does not exist: build first, or give --bin" "${compare[@]}" --bin nowhere
expect_success python3 "$SOURCE/tests/cli/bench_rows_test.py" "$SOURCE/benchmarks"
echo "$checks checks passed"
