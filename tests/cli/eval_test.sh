#!/usr/bin/env bash
# clip_eval as a user runs it: every task, several prompts and models, a suite with a broken data set and its rerun,
# ranks, bad images, and what wrong class names give.
source "$(dirname "$0")/common.sh"
eval=("$BIN/clip_eval")

expect_success "$BIN/clip_train" --config "$TINY" name=run train.steps=14
"$BIN/clip_data" synth set --samples 96 --samples-per-shard 48 --test-samples 60 --image-size 32 >/dev/null
run=(--checkpoint runs/run --batch-size 16)

# json FILE EXPRESSION: what python finds in a result.
json() { python3 -c "import json,sys; d = json.load(open(sys.argv[1])); v = ($2); print(v)" "$1"; }
same() { [[ $1 == "$2" ]] || fail "$3: '$1' is not '$2'"; checks=$((checks + 1)); }

# Zero-shot: keys of CLIP_benchmark, several prompts in one pass, per-class table.
expect_success "${eval[@]}" zero-shot "${run[@]}" --data set --output one.json --per-class --confusion
same "$(json one.json 'list(d)[:6]')" "['dataset', 'model', 'pretrained', 'task', 'metrics', 'language']" "first keys"
same "$(json one.json 'sum(r["hits"] for r in d["per_class"]) / d["num_samples"] == d["metrics"]["acc1"]')" True "per-class hits"
same "$(json one.json 'sum(r[2] for r in d["confusion"])')" 60 "confusion counts"
same "$(json one.json 'len(d["model_sha256"]), len(d["prompts_sha256"]), len(d["data_sha256"]), d["skipped_samples"]["count"]')" \
  "(64, 64, 64, 0)" "digests"
expect_success "${eval[@]}" zero-shot "${run[@]}" --data set --prompts dataset,class_name --prompts clip_best --output three.json
same "$(json three.json '[r["prompts"] for r in d]')" "['dataset', 'class_name', 'clip_best']" "prompts"
same "$(json three.json 'd[0]["metrics"]')" "$(json one.json 'd["metrics"]')" "the data set's prompts among others"

# The same from several models, and from several ranks.
expect_success "${eval[@]}" zero-shot --checkpoint runs/run/checkpoints/step_0000001[0-9] runs/run --batch-size 16 --data set \
  --output models.json
same "$(json models.json 'd[0]["metrics"] == d[-1]["metrics"]')" True "latest and its name"
expect_success "${eval[@]}" zero-shot "${run[@]}" --data set --output ranks.json --nproc 3
same "$(json ranks.json 'd["metrics"]')" "$(json one.json 'd["metrics"]')" "3 ranks"

# Class folders hold the same images: the same numbers.
python3 - <<'EOF'
import os, tarfile
names = open("set/classnames.txt").read().splitlines()
for shard in sorted(os.listdir("set/test")):
    if not shard.endswith(".tar"): continue
    tar = tarfile.open("set/test/" + shard)
    members = {m.name: tar.extractfile(m).read() for m in tar}
    for name, data in members.items():
        if not name.endswith(".cls"): continue
        stem = name[:-4]
        folder = f"folders/test/{int(data):03d}"
        os.makedirs(folder, exist_ok=True)
        image = next(n for n in members if n.startswith(stem + ".") and n.endswith((".png", ".jpg")))
        open(f"{folder}/{os.path.basename(image)}", "wb").write(members[image])
present = sorted(os.listdir("folders/test"))
open("folders/classnames.txt", "w").write("".join(names[int(p)] + "\n" for p in present))
open("all.txt", "w").write("".join(f"{i:03d}\t{n}\n" for i, n in enumerate(names)))
with open("list.csv", "w") as out:
    out.write("filepath,label\n")
    for p in present:
        for f in sorted(os.listdir(f"folders/test/{p}")):
            out.write(f'folders/test/{p}/{f},"{names[int(p)]}"\n')
EOF
cp set/zeroshot_classification_templates.txt folders/
expect_success "${eval[@]}" zero-shot "${run[@]}" --data folders --class-names all.txt --output folders.json
same "$(json folders.json 'd["metrics"]["acc1"]')" "$(json one.json 'd["metrics"]["acc1"]')" "class folders"
expect_success "${eval[@]}" zero-shot "${run[@]}" --data list.csv --class-names set/classnames.txt \
  --prompts set/zeroshot_classification_templates.txt --output csv.json
same "$(json csv.json 'd["metrics"]["acc1"]')" "$(json one.json 'd["metrics"]["acc1"]')" "CSV"

# Retrieval, with as many ranks as one likes.
expect_success "${eval[@]}" retrieval "${run[@]}" --data set --split train --output retrieval.json
same "$(json retrieval.json 'd["task"], sorted(d["metrics"])[:3]')" \
  "('zeroshot_retrieval', ['image_retrieval_mean_rank', 'image_retrieval_median_rank', 'image_retrieval_recall@1'])" "retrieval"
expect_success "${eval[@]}" retrieval "${run[@]}" --data set --split train --output retrieval2.json --nproc 2
same "$(json retrieval2.json 'd["metrics"]')" "$(json retrieval.json 'd["metrics"]')" "retrieval on 2 ranks"

# Probes; features are kept.
expect_success "${eval[@]}" linear-probe "${run[@]}" --data synthetic --c 0.3 --cache cache --output probe.json
expect_success "${eval[@]}" linear-probe "${run[@]}" --data synthetic --c 0.3 --cache cache --output again.json --nproc 2
same "$(json again.json 'd["metrics"]')" "$(json probe.json 'd["metrics"]')" "probe from kept features"
expect_success "${eval[@]}" linear-probe "${run[@]}" --data synthetic --c 0.3 --shots 1,4 --seeds 2 --cache cache --output shots.json
same "$(json shots.json 'sorted(k for k in d["metrics"])')" "['lp_acc1_1shot', 'lp_acc1_1shot_std', 'lp_acc1_4shot', 'lp_acc1_4shot_std']" "shots"
expect_success "${eval[@]}" few-shot "${run[@]}" --data synthetic --shots 1,5 --seeds 2 --output few.json
same "$(json few.json 'd["task"], len(d["by_seed"]["5"])')" "('fewshot_linear_regression', 2)" "few-shot"

# A suite with a broken data set: the rest is done, a rerun does only what is missing.
mkdir broken
cat >suite.yaml <<'EOF'
tasks:
  - {data: set, prompts: [dataset, class_name]}
  - {data: broken}
  - {task: retrieval, data: set, split: train}
  - {task: linear-probe, data: synthetic, c: 0.3}
EOF
expect_failure 1 "broken_zero-shot failed: " "${eval[@]}" --suite suite.yaml "${run[@]}" --output results
grep -q '1 of 4 evaluations failed; a rerun does only these' err.txt || fail "no list of failures: $(cat err.txt)"
same "$(ls results/run)" "$(printf '%s\n' set_linear-probe.json set_retrieval.json set_zero-shot_class_name.json set_zero-shot_dataset.json | sed 's/set_linear/synthetic_linear/' | sort)" "files of a suite"
same "$(json results/run/set_zero-shot_dataset.json 'd["metrics"]')" "$(json one.json 'd["metrics"]')" "a suite's result"
before=$(stat -c %Y%i results/run/*.json)
cp -r set/* broken/
status=0
"${eval[@]}" --suite suite.yaml "${run[@]}" --output results >out.txt 2>err.txt || fail "the rerun failed: $(cat err.txt)"
same "$(grep -c '(from before)' out.txt)" 4 "results kept by the rerun"
same "$(stat -c %Y%i $(ls results/run/*.json | grep -v broken))" "$before" "files of kept results"
[[ -s results/results.csv && -s results/run/broken_zero-shot.json ]] || fail "the rerun left something out"
"${eval[@]}" --suite suite.yaml "${run[@]}" --output results --precision amp_bf16 >out.txt 2>err.txt || fail "bf16: $(cat err.txt)"
same "$(grep -c '(from before)' out.txt || true)" 0 "results of another precision"

# The same while training.
expect_success "$BIN/clip_train" --config "$TINY" name=suite train.steps=20 eval.every_steps=10 eval.suite=suite.yaml
same "$(grep -c '"evaluation":"zeroshot_retrieval"' runs/suite/metrics.jsonl)" 2 "suites in a run"

# Bad images: an error that names one, or left out and counted.
mkdir -p bad
cp -r folders bad/
first=$(ls bad/folders/test/*/* | head -n 1)
head -c 20 "$first" >cut && mv cut "$first"
expect_failure 1 "$(basename "$first")" "${eval[@]}" zero-shot "${run[@]}" --data bad/folders --class-names all.txt
expect_failure 1 "$(basename "$first")" "${eval[@]}" zero-shot "${run[@]}" --data bad/folders --class-names all.txt --nproc 2
for nproc in 1 2; do
  expect_success "${eval[@]}" zero-shot "${run[@]}" --data bad/folders --class-names all.txt --on-bad-sample skip --nproc $nproc \
    --output skip.json
  same "$(json skip.json 'd["num_samples"], d["skipped_samples"]["count"], len(d["skipped_samples"]["first"])')" "(59, 1, 1)" "skipped"
done

# Wrong class names.
head -n 5 set/classnames.txt >few.txt
expect_failure 1 "the label is 5, but [few.txt] has 5 class names: expected [0, 5)" \
  "${eval[@]}" zero-shot "${run[@]}" --data set --class-names few.txt

# Command line.
expect_failure 2 "name what to evaluate" "${eval[@]}" --checkpoint runs/run
expect_failure 2 "--suite needs --output" "${eval[@]}" --suite suite.yaml --checkpoint runs/run
expect_failure 2 "--output: there is no folder nowhere" "${eval[@]}" zero-shot "${run[@]}" --data set --output nowhere/result.json
expect_failure 2 "there is no set \"clip_81\"" "${eval[@]}" zero-shot "${run[@]}" --data set --prompts clip_81
echo "tasks: [{data: set, promts: [a]}]" >wrong.yaml
expect_failure 2 "wrong.yaml:1:21: tasks[0].promts: unknown key (did you mean prompts?)" \
  "${eval[@]}" --suite wrong.yaml --checkpoint runs/run --output x
echo "$checks checks passed"
