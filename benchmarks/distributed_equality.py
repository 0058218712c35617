#!/usr/bin/env python3
"""How far training over several processes is from training in one, here and in open_clip.

    pip install open_clip_torch==3.3.0 safetensors
    python benchmarks/distributed_equality.py build/default/bin 'cifar10/train/{00000..00049}.tar'

Prints two tables in Markdown: runs of clip_train with the same global batch, split over ranks and accumulation; and the
gradient of one batch of 64 pairs by clip_train and by open_clip in its three modes, from the same weights.
"""
import argparse
import io
import json
import math
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

import open_clip
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
BATCH = 64
BETA1 = 0.9
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def train(binaries, folder, name, ranks, *settings):
    """Runs clip_train; returns the last checkpoint's folder and the losses."""
    command = [f"{binaries}/clip_train", "--config", HERE / "vit_cifar.yaml", "--nproc", ranks, f"output={folder}", f"name={name}"]
    subprocess.run([str(part) for part in (*command, *settings)], check=True, stdout=subprocess.DEVNULL)
    losses = [json.loads(line)["loss"] for line in open(folder / name / "metrics.jsonl")]
    return folder / name / "checkpoints" / "latest", losses


def weights_of(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def compare_runs(binaries, shards, folder):
    data = f"data.train={shards}"
    start, _ = train(binaries, folder, "start", 1, data, "train.steps=1", "optim.warmup_steps=0", "optim.lr=1e-30")
    checkpoint, expected_losses = train(binaries, folder, "straight", 1, data)
    expected = weights_of(checkpoint)
    moved = max((expected[n] - v).abs().max().item() for n, v in weights_of(start).items())
    print(f"\n20 steps, global batch {BATCH}, fp32, against 1 rank; they change some parameter by {moved:.2g}\n")
    print("| run | largest difference of a loss | largest difference of a parameter |\n|---|---|---|")
    cases = [
        ("1 rank x 64, two threads instead of one", 1, "threads=2"),
        ("2 ranks x 32", 2, "threads=1"),
        ("4 ranks x 16", 4, "threads=1"),
        ("1 rank, accumulate 4 x 16", 1, "train.accumulate=4"),
        ("2 ranks, accumulate 2 x 16", 2, "train.accumulate=2"),
        ("2 ranks x 32, shard_optimizer", 2, "distributed.shard_optimizer=true"),
        ("2 ranks x 32, gradients sent as bf16", 2, "distributed.gradient_dtype=bf16"),
    ]
    for number, (title, ranks, setting) in enumerate(cases):
        checkpoint, losses = train(binaries, folder, f"case{number}", ranks, data, setting)
        loss = max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True))
        weight = max((v - expected[n]).abs().max().item() for n, v in weights_of(checkpoint).items())
        print(f"| {title} | {loss:.1e} | {weight:.1e} |", flush=True)


def first_samples(shards, count):
    """Pairs of encoded image and caption from the first shard."""
    first = re.sub(r"\{(\d+)\.\.\d+\}", r"\1", shards)
    members = {}
    with tarfile.open(first) as archive:
        for member in archive:
            stem, extension = member.name.split(".", 1)
            members.setdefault(stem, {})[extension] = archive.extractfile(member).read()
            if len(members) > count:
                break
    pairs = [(m.get("jpg") or m["png"], m["txt"].decode()) for m in list(members.values())[:count]]
    assert len(pairs) == count
    return pairs


def write_shard(path, pairs):
    with tarfile.open(path, "w") as archive:
        for number, (image, caption) in enumerate(pairs):
            for extension, content in (("jpg", image), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_model(folder):
    """A random open_clip model as the folder that both sides read."""
    config = json.loads(subprocess.run(
        ["python3", "-c", "import sys, yaml, json; print(json.dumps(yaml.safe_load(open(sys.argv[1]))['model']))", HERE / "vit_cifar.yaml"],
        check=True, capture_output=True, text=True).stdout)
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config, output_dict=True)
    folder.mkdir()
    save_file({n: v.contiguous() for n, v in model.state_dict().items() if n != "attn_mask"}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": list(MEAN), "std": list(STD)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return config


def read_batch(pairs):
    pixels = []
    for image, _ in pairs:
        raw = bytearray(Image.open(io.BytesIO(image)).convert("RGB").tobytes())
        pixel = torch.frombuffer(raw, dtype=torch.uint8).view(32, 32, 3) / 255
        pixels.append(((pixel - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1))
    return torch.stack(pixels), open_clip.SimpleTokenizer()([caption for _, caption in pairs])


def open_clip_gradients(rank, world_size, folder, config, batch, flags, result):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    model = open_clip.model.CLIP(**config, output_dict=True)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"), strict=False)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    output = wrapped(batch[0][rows], batch[1][rows])
    loss = ClipLoss(rank=rank, world_size=world_size, **flags)(output["image_features"], output["text_features"], output["logit_scale"])
    loss.backward()
    if rank == 0:
        save_file({n: p.grad.contiguous() for n, p in model.named_parameters()}, result)
    dist.destroy_process_group()


def run_open_clip(world_size, folder, config, batch, **flags):
    result = folder / "gradients.safetensors"
    mp.spawn(open_clip_gradients, (world_size, folder, config, batch, flags, result), nprocs=world_size)
    return load_file(result)


def run_ours(binaries, folder, model, shard, name, ranks, *settings):
    """Adam's first moment after one step from zero is (1 - beta1) times the gradient."""
    checkpoint, _ = train(binaries, folder, name, ranks, f"weights={model}", f"data.train={shard}", "train.steps=1",
                          "optim.warmup_steps=0", f"optim.beta1={BETA1}", "data.crop.scale_min=1.0", "data.crop.scale_max=1.0", *settings)
    state = load_file(checkpoint / "optimizer.safetensors")
    return {n.removeprefix("exp_avg."): v / (1 - BETA1) for n, v in state.items() if n.startswith("exp_avg.")}


def parts(gradients):
    scale = {n: v for n, v in gradients.items() if n == "logit_scale"}
    image = {n: v for n, v in gradients.items() if n.startswith("visual.")}
    text = {n: v for n, v in gradients.items() if n not in scale and n not in image}
    return image, text, scale


def error(gradients, reference):
    difference = math.sqrt(sum((gradients[n].double() - v.double()).pow(2).sum().item() for n, v in reference.items()))
    length = math.sqrt(sum(v.double().pow(2).sum().item() for v in reference.values()))
    own = math.sqrt(sum(gradients[n].double().pow(2).sum().item() for n in reference))
    return f"{difference / length:.1e} (length x {own / length:.4f})"


def compare_gradients(binaries, shards, folder):
    pairs = first_samples(shards, BATCH)
    shard = folder / "batch.tar"
    write_shard(shard, pairs)
    model = folder / "start"
    config = write_model(model)
    batch = read_batch(pairs)
    reference = run_open_clip(1, model, config, batch)
    rows = [
        ("clip_train, 1 rank", run_ours(binaries, folder, model, shard, "g1", 1)),
        ("clip_train, 2 ranks", run_ours(binaries, folder, model, shard, "g2", 2)),
        ("clip_train, 4 ranks", run_ours(binaries, folder, model, shard, "g4", 4)),
        ("clip_train, 1 rank, accumulate 4", run_ours(binaries, folder, model, shard, "ga", 1, "train.accumulate=4")),
        ("open_clip, 4 ranks, --gather-with-grad --local-loss", run_open_clip(4, model, config, batch, gather_with_grad=True, local_loss=True)),
        ("open_clip, 4 ranks, no flags (its default)", run_open_clip(4, model, config, batch)),
        ("open_clip, 4 ranks, --local-loss", run_open_clip(4, model, config, batch, local_loss=True)),
    ]
    print(f"\nGradient of one batch of {BATCH} pairs against open_clip in one process: |difference| / |gradient|\n")
    print("| | image tower | text tower | logit scale |\n|---|---|---|---|")
    for title, gradients in rows:
        print(f"| {title} | " + " | ".join(error(gradients, part) for part in parts(reference)) + " |")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binaries", type=Path)
    arguments.add_argument("shards", help="CIFAR-10 shards with captions, as a brace list")
    given = arguments.parse_args()
    shards = str(Path(given.shards).absolute())
    with tempfile.TemporaryDirectory() as folder:
        compare_gradients(given.binaries.absolute(), shards, Path(folder))
        compare_runs(given.binaries.absolute(), shards, Path(folder))


if __name__ == "__main__":
    main()
