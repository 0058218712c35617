#!/usr/bin/env bash
# clip_adapt as a user runs it: support sets from a labelled split, adapters by several protocols, ranks, a saved
# classifier, and what goes wrong.
source "$(dirname "$0")/common.sh"
adapt=("$BIN/clip_adapt")

expect_success "$BIN/clip_train" --config "$TINY" name=run train.steps=14
"$BIN/clip_data" synth set --samples 96 --samples-per-shard 48 --test-samples 60 --image-size 32 >/dev/null
mkdir -p labelled
cp -r set/test labelled/test
cp -r set/test labelled/train
cp set/classnames.txt set/zeroshot_classification_templates.txt labelled/
python3 - <<'EOF'
# Classes without a sample can't be learned from: keep those that there are two of.
import collections, io, os, tarfile
names = open("labelled/classnames.txt").read().splitlines()
samples = collections.defaultdict(dict)
for shard in sorted(os.listdir("set/test")):
    if shard.endswith(".tar"):
        for member in (tar := tarfile.open("set/test/" + shard)):
            stem, extension = member.name.split(".", 1)
            samples[shard + stem][extension] = tar.extractfile(member).read()
counts = collections.Counter(int(s["cls"]) for s in samples.values())
kept = [c for c in range(len(names)) if counts[c] >= 2]
open("labelled/classnames.txt", "w").write("".join(names[c] + "\n" for c in kept))
for split in ("train", "test"):
    for old in os.listdir("labelled/" + split): os.remove(f"labelled/{split}/{old}")
    with tarfile.open(f"labelled/{split}/0.tar", "w") as tar:
        for i, sample in enumerate(s for s in samples.values() if counts[int(s["cls"])] >= 2):
            for extension, data in sorted(sample.items()):
                if extension == "cls": data = str(kept.index(int(data))).encode()
                info = tarfile.TarInfo(f"{i:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    open(f"labelled/{split}/nshards.txt", "w").write("1\n")
EOF
model=(--checkpoint runs/run --batch-size 16)

# records FILE EXPRESSION: what python finds in a results file; r is the list of its lines.
records() { python3 -c "import json,sys; r = [json.loads(l) for l in open(sys.argv[1])]; v = ($2); print(v)" "$1"; }
same() { [[ $1 == "$2" ]] || fail "$3: '$1' is not '$2'"; checks=$((checks + 1)); }

# A support set, and changes of it.
expect_success "${adapt[@]}" support from-split "${model[@]}" --data labelled --shots 2 --views 2 --output two.safetensors
expect_success "${adapt[@]}" support from-split "${model[@]}" --data labelled --shots 2 --views 2 --output again.safetensors
cmp two.safetensors again.safetensors || fail "two equal commands made different support sets"
expect_success "${adapt[@]}" support cap two.safetensors --per-class 1 --output one.safetensors
expect_success "${adapt[@]}" support append one.safetensors two.safetensors --output both.safetensors
expect_success "${adapt[@]}" support show both.safetensors
grep -q "builder: from-split" out.txt || fail "show doesn't tell the builder"

# From class names alone: an index of images, and class folders.
expect_success "$BIN/clip_embed" images 'set/train/{00000..00001}.tar' --checkpoint runs/run --output index --dtype fp16
retrieve=("${adapt[@]}" support from-shards "${model[@]}" --index index --data labelled --split test)
expect_success "${retrieve[@]}" --per-class 3 --min-per-class 2 --output retrieved.safetensors
grep -q "near evaluation images" out.txt || fail "from-shards doesn't say what was left out"
expect_success "${retrieve[@]}" --per-class 3 --min-per-class 2 --output retrieved2.safetensors
cmp retrieved.json retrieved2.json || fail "two equal searches gave different support sets"
# To this model nearly all images are alike: none is far enough from the evaluation images.
expect_failure 1 "classes have fewer than 2 images" "${retrieve[@]}" --min-per-class 2 --exclude labelled --output x.safetensors
expect_success "${retrieve[@]}" --exclude labelled --excluded-cosine 1.01 --output x.safetensors
expect_success "${adapt[@]}" support from-folder "${model[@]}" --data labelled --split train --output folder.safetensors
expect_failure 1 "the index is of the model" "${adapt[@]}" support from-shards --checkpoint runs/run/checkpoints/step_00000007 \
  --index index --data labelled --split test --output x.safetensors

# Found with one model, for another.
other=(--checkpoint runs/run/checkpoints/step_00000007 --batch-size 16)
again=("${adapt[@]}" support from-shards "${other[@]}" --index index --index-checkpoint runs/run --data labelled --split test \
  --per-class 3 --min-per-class 2)
expect_success "${again[@]}" --shards 'set/train/{00000..00001}.tar' --output other.safetensors
grep -q "encoded again: 0 unreadable" out.txt || fail "from-shards doesn't say that images were encoded again"
python3 - <<'EOF' || fail "another model found other images"
import json
a, b = (json.load(open(f"{name}.json")) for name in ("retrieved", "other"))
keys = lambda manifest: [row["key"] for row in manifest["rows"]]
assert keys(a) == keys(b) and a["model_sha256"] != b["model_sha256"], (a, b)
EOF
checks=$((checks + 1))
expect_success "${adapt[@]}" run "${other[@]}" --data labelled --accept-labels --support other.safetensors --adapter gda
expect_failure 1 "are not among those given" "${again[@]}" --shards labelled/test/0.tar --output x.safetensors
expect_failure 2 "go together" "${again[@]}" --output x.safetensors
expect_success "${retrieve[@]}" --per-class 3 --min-per-class 2 --output ranks.safetensors --nproc 2
cmp retrieved.json ranks.json || fail "2 ranks retrieved other images"

# Pictures of them.
for sheet in "two --data labelled" "retrieved --shards set/train/{00000..00001}.tar"; do
  read -r name where <<<"$sheet"
  # shellcheck disable=SC2086
  expect_success "${adapt[@]}" support sheet $name.safetensors $where --output $name.png
  ! grep -q grey out.txt || fail "$name: $(cat out.txt)"
done
expect_failure 2 "must end in .png" "${adapt[@]}" support sheet two.safetensors --data labelled --output two.jpg

# Every adapter by every protocol that needs no other set.
run=("${adapt[@]}" run "${model[@]}" --data labelled --accept-labels)
expect_success "${run[@]}" --support two.safetensors --adapter tip-adapter,tip-adapter-f,tip-x,gda,ape,timo \
  --protocol fixed,support-cv --set tip-x.psi=none --cache cache --output results.jsonl
same "$(records results.jsonl 'len(r), sorted({x["protocol"] for x in r})')" "(13, ['fixed', 'support-cv'])" "results"
same "$(records results.jsonl '[x["settings"]["psi"] for x in r if x["adapter"] == "tip-x"]')" "['none', 'none']" "settings"
expect_success "${run[@]}" --support one.safetensors --adapter tip-x --protocol fixed,support-cv --output results.jsonl
grep -q "left out, a class has a single image" out.txt || fail "support-cv of one image a class isn't mentioned"
same "$(records results.jsonl 'len(r)')" 15 "results that were added"

exec 9>>.results.jsonl.lock
flock 9
expect_failure 2 "results.jsonl" "${run[@]}" --support one.safetensors --adapter gda --output results.jsonl
exec 9>&-
same "$(records results.jsonl 'len(r)')" 15 "results beside another run"

expect_success "${run[@]}" --support retrieved.safetensors --support folder.safetensors --adapter tip-x,gda --output named.jsonl
same "$(records named.jsonl '[x["support"] for x in r]')" "['none', 'retrieved', 'retrieved', 'folder', 'folder']" "kinds of support sets"

# Class texts: sentences (CuPL), templates and sentences (CuPL+e), the mean of scores (VisDesc).
python3 -c "
import json
names = open('labelled/classnames.txt').read().splitlines()
json.dump({name: [f'a {name}, painted', f'the shape is called {name}'] for name in names}, open('cupl.json', 'w'))"
texts=("${run[@]}" --support two.safetensors --adapter tip-x --output texts.jsonl)
expect_success "${texts[@]}" --prompts cupl.json --prompts dataset+cupl.json
expect_success "${texts[@]}" --prompts cupl.json --pooling mean_score
same "$(records texts.jsonl '[(x["prompts"], x["prompt_pooling"]) for x in r if x["adapter"] == "tip-x"]')" \
  "[('cupl.json', 'mean_direction'), ('dataset+cupl.json', 'mean_direction'), ('cupl.json', 'mean_score')]" "class texts"
expect_success "${adapt[@]}" report texts.jsonl --output texts
same "$(grep -c '| zero-shot/fixed' texts/table.md)" 3 "tables of other texts"

# Draws of few shots; ranks give the same.
expect_success "${run[@]}" --shots 1,2 --seeds 2 --adapter tip-x,gda --output alone.jsonl
expect_success "${run[@]}" --shots 1,2 --seeds 2 --adapter tip-x,gda --output ranks.jsonl --nproc 2
same "$(records ranks.jsonl '[x["acc1"] for x in r]')" "$(records alone.jsonl '[x["acc1"] for x in r]')" "2 ranks"

# Tables and a plot.
expect_success "${adapt[@]}" report alone.jsonl --output report
grep -q '| gda/fixed |' report/table.md || fail "no row of gda: $(cat report/table.md)"
same "$(head -n 1 report/table.csv)" "dataset,model,prompts,method,support,shots,images,seeds,mean,deviation" "columns"
python3 -c "import xml.dom.minidom, sys; xml.dom.minidom.parse(sys.argv[1])" report/labelled.svg || fail "the plot is no XML"

# A saved classifier says what the run said.
expect_success "${run[@]}" --support two.safetensors --adapter tip-x --save saved.safetensors
mkdir -p images
tar -xf labelled/test/0.tar -C images
image=$(find images -name '00000.*' ! -name '*.cls' ! -name '*.txt' ! -name '*.json' | head -n 1)
expect_success "${adapt[@]}" predict "$image" --adapted saved.safetensors --checkpoint runs/run --top 2
same "$(wc -l <out.txt)" 3 "predictions"

# CALIP needs no support set, and looks at places in the images.
expect_success "${run[@]}" --adapter calip --protocol fixed,support-cv --output both.jsonl --cache cache
grep -q "calip/support-cv: left out" out.txt || fail "support-cv without a support set isn't mentioned"
expect_success "${run[@]}" --adapter calip --output calip.jsonl --save calip.safetensors --cache cache
same "$(records calip.jsonl '[(x["adapter"], x["support"]) for x in r]')" "[('zero-shot', 'none'), ('calip', 'none')]" "calip"
expect_success "${run[@]}" --adapter calip --output calip2.jsonl --nproc 2
same "$(records calip2.jsonl 'r[1]["acc1"]')" "$(records calip.jsonl 'r[1]["acc1"]')" "calip on 2 ranks"
expect_success "${adapt[@]}" predict "$image" --adapted calip.safetensors --checkpoint runs/run --top 2
same "$(wc -l <out.txt)" 3 "predictions"
expect_failure 2 "say --labelled-search" "${run[@]}" --adapter calip --protocol test-oracle

# What goes wrong.
expect_failure 1 "its features are of the model" "${adapt[@]}" run --checkpoint runs/run/checkpoints/step_00000007 \
  --data labelled --support two.safetensors --adapter tip-x
sed 's/"builder": "from-split"/"builder": "from-shards"/' two.json >named.json
cp two.safetensors named.safetensors
expect_failure 2 "take fixed or support-cv, or say --labelled-search" "${run[@]}" --support named.safetensors --adapter tip-x \
  --protocol test-oracle
expect_success "${run[@]}" --support named.safetensors --adapter tip-x --protocol test-oracle --labelled-search
expect_failure 2 "there is no protocol \"cv\"" "${run[@]}" --support two.safetensors --adapter tip-x --protocol cv
expect_failure 2 "there are zero-shot, tip-adapter" "${run[@]}" --support two.safetensors --adapter tip
expect_failure 2 "has no option \"taux\"" "${run[@]}" --support two.safetensors --adapter tip-x --set tip-x.taux=1
expect_failure 2 "name what tip-x shall adapt with" "${run[@]}" --adapter tip-x
expect_failure 2 "one adapter, one protocol" "${run[@]}" --support two.safetensors --adapter tip-x,gda --save x.safetensors
head -c 2000 two.safetensors >cut.safetensors
cp two.json cut.json
expect_failure 1 "isn't the file that" "${run[@]}" --support cut.safetensors --adapter tip-x
python3 - <<'EOF'
lines = open("labelled/classnames.txt").read().splitlines()
open("renamed.txt", "w").write("\n".join(["unicorn"] + lines[1:]) + "\n")
EOF
expect_failure 1 "classes are not in the support set: unicorn" "${run[@]}" --class-names renamed.txt --support two.safetensors \
  --adapter tip-x
echo '{"broken' >broken.jsonl
expect_failure 1 "broken.jsonl:1" "${run[@]}" --support two.safetensors --adapter tip-x --output broken.jsonl

echo "$checks checks passed"
