#!/usr/bin/env bash
# Adapters on captioned CIFAR-10 shards. The model is trained on ten of them without the captions that say airplane,
# automobile, ship or truck: it knows such images (by plane, car, boat, lorry, ...) but not these names. The other forty
# shards give support sets, by class names alone and by labels (the classes that their captions name). Names alone are
# searched for by the model itself, and by one that was trained on all captions of the ten shards.
#   adapt_cifar10.sh BIN_FOLDER DATA     DATA: a folder with train/{00000..00049}.tar and a test split (CLIP_benchmark)
# Writes into the working directory, among others results.jsonl and report/.
set -euo pipefail
bin=$(realpath "$1") data=$(realpath "$2")
rest="$data/train/{00010..00049}.tar"
adapters=tip-adapter,tip-adapter-f,tip-x,gda,ape,timo

python3 - "$data" <<'EOF'
import io, os, shutil, sys, tarfile
data = sys.argv[1]
classes = open(f"{data}/classnames.txt").read().split()
other_names = {"plane": "airplane", "jet": "airplane", "aircraft": "airplane", "car": "automobile", "lorry": "truck",
               "vessel": "ship", "boat": "ship"}
unknown = {"airplane", "automobile", "ship", "truck"}

def samples(number):
    members = {}
    with tarfile.open(f"{data}/train/{number:05d}.tar") as shard:
        for member in shard:
            stem, extension = member.name.split(".", 1)
            members.setdefault(stem, {})[extension] = shard.extractfile(member).read()
    return members

def write(path, members):
    with tarfile.open(path, "w") as shard:
        for stem, parts in members.items():
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))

def words(parts):
    return parts["txt"].decode().strip(". ").split()

os.makedirs("unnamed", exist_ok=True)
for number in range(10):
    kept = {stem: parts for stem, parts in samples(number).items() if not unknown & set(words(parts))}
    write(f"unnamed/{number:05d}.tar", kept)

os.makedirs("cifar10/train", exist_ok=True)
for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
    shutil.copy(f"{data}/{file}", "cifar10")
shutil.copytree(f"{data}/test", "cifar10/test", dirs_exist_ok=True)
for number in range(10, 50):
    members = samples(number)
    for parts in members.values():
        found = {other_names.get(word, word) for word in words(parts)} & set(classes)
        assert len(found) == 1, parts["txt"]
        del parts["txt"]
        parts["cls"] = str(classes.index(found.pop())).encode()
    write(f"cifar10/train/{number - 10}.tar", members)
open("cifar10/train/nshards.txt", "w").write("40\n")
EOF

train() { # NAME SHARDS
  "$bin/clip_train" --config cifar10_rn.yaml --resume auto name="$1" "data.train=$2" "eval.zero_shot.data=$data" \
    log.tensorboard=false train.steps=1000 checkpoint.every_steps=1000 eval.every_steps=1000
}
train adapted 'unnamed/{00000..00009}.tar'
train searcher "$data/train/{00000..00009}.tar"
for name in adapted searcher; do
  "$bin/clip_embed" images "$rest" --checkpoint "runs/$name" --output "index_$name" --dtype fp16
done

rm -f results.jsonl
model=(--checkpoint runs/adapted)
run=("$bin/clip_adapt" run "${model[@]}" --data cifar10 --cache cache --output results.jsonl)
# From class names alone: no label is looked at.
find_images=("$bin/clip_adapt" support from-shards "${model[@]}" --data cifar10 --split test --exclude cifar10
  --excluded-cosine 0.9999 --duplicate-cosine 0.9999)
for per_class in 16 64; do
  "${find_images[@]}" --index index_adapted --per-class "$per_class" --output "own$per_class.safetensors"
  "${find_images[@]}" --index index_searcher --index-checkpoint runs/searcher --shards "$rest" --per-class "$per_class" \
    --output "other$per_class.safetensors"
  for set in own other; do
    "${run[@]}" --support "$set$per_class.safetensors" --adapter "$adapters" --protocol fixed,support-cv
  done
done
"${run[@]}" --adapter calip
# A few labelled images, three draws.
"${run[@]}" --shots 1,2,4,8,16 --seeds 3 --adapter "$adapters" --protocol fixed,support-cv
"$bin/clip_adapt" report results.jsonl --output report
