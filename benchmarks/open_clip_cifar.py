#!/usr/bin/env python3
"""Trains open_clip on captioned CIFAR-10 shards for a given time and evaluates it zero-shot.

    open_clip_cifar.py FOLDER MODEL_CONFIG [--seconds 600] [--batch 256] [--precision fp32|bf16]

FOLDER has train/{00000..00049}.tar and a test set in CLIP_benchmark's layout. The learning rate follows a cosine over
the time, not over a number of steps. Starting Python and the evaluation are not counted. Prints one JSON object.
"""
import argparse
import contextlib
import io
import json
import math
import os
import tarfile
import time
import types
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset
from PIL import Image

WARMUP_STEPS = 100
SAMPLES = 50000


def make_loader(folder, size, context, batch, workers):
    options = types.SimpleNamespace(
        train_data=f"{folder}/train/{{00000..00049}}.tar", val_data=None, dataset_resampled=False, train_num_samples=SAMPLES,
        val_num_samples=0, train_data_upsampling_factors=None, seed=0, workers=workers, batch_size=batch, world_size=1, rank=0, local_rank=0)
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    return get_wds_dataset(options, image_transform(size, is_train=True), True, tokenizer=tokenizer)


def endless(data):
    epoch = 0
    while True:
        data.set_epoch(epoch)
        yield from data.dataloader
        epoch += 1


def decay_groups(model):
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in trained if p.ndim < 2 or "bn" in name or "ln" in name or "logit_scale" in name]
    known = {id(p) for p in plain}
    return [{"params": plain, "weight_decay": 0.0}, {"params": [p for _, p in trained if id(p) not in known], "weight_decay": 0.2}]


def train(model, batches, options):
    optimizer = torch.optim.AdamW(decay_groups(model), lr=options.lr, betas=(0.9, 0.999), eps=1e-8)
    loss_of, start, steps = ClipLoss(), time.monotonic(), 0
    while (done := (time.monotonic() - start) / options.seconds) < 1:
        images, texts = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (steps + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16) if options.precision == "bf16" else contextlib.nullcontext():
            output = model(images, texts)
            loss = loss_of(output[0], output[1], output[2])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        steps += 1
    return steps, time.monotonic() - start


def test_samples(folder, transform):
    """Batches of (images, labels) of a folder in CLIP_benchmark's layout."""
    for number in range(int((folder / "test/nshards.txt").read_text())):
        samples = {}
        with tarfile.open(folder / f"test/{number}.tar") as archive:
            for member in archive:
                key, extension = member.name.split(".", 1)
                samples.setdefault(key, {})[extension] = archive.extractfile(member).read()
        images = [transform(Image.open(io.BytesIO(sample["jpg"]))) for sample in samples.values()]
        yield torch.stack(images), torch.tensor([int(sample["cls"]) for sample in samples.values()])


def zero_shot_accuracy(model, folder, size, context):
    names = (folder / "classnames.txt").read_text().splitlines()
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    tokenize = open_clip.SimpleTokenizer(context_length=context)
    prompts = [[template.replace("{c}", name) for template in templates] for name in names]
    correct = total = 0
    with torch.no_grad():
        rows = [model.encode_text(tokenize(texts), normalize=True).mean(0) for texts in prompts]
        classifier = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        for images, labels in test_samples(folder, image_transform(size, is_train=False)):
            predicted = (model.encode_image(images) @ classifier.T).argmax(1)
            correct, total = correct + (predicted == labels).sum().item(), total + len(labels)
    return 100 * correct / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model_config", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = json.loads(options.model_config.read_text())
    model = open_clip.model.CLIP(**config)
    size, context = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    model.train()
    batches = endless(make_loader(options.folder, size, context, options.batch, options.workers))
    steps, seconds = train(model, batches, options)
    model.eval()
    print(json.dumps({"program": f"open_clip {open_clip.__version__}, torch {torch.__version__}", "precision": options.precision,
                      "batch": options.batch, "steps": steps, "seconds": seconds, "samples_per_s": steps * options.batch / seconds,
                      "top1": zero_shot_accuracy(model, options.folder, size, context)}))


if __name__ == "__main__":
    main()
