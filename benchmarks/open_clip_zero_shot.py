#!/usr/bin/env python3
"""Times open_clip's zero-shot evaluation of a folder in CLIP_benchmark's layout, as `clip_eval zero-shot` does for this library.

    open_clip_zero_shot.py FOLDER [--model NAME_OR_FOLDER] [--precision fp32|bf16] [--samples 256] [--classes 20] [--templates FILE]

webdataset, open_clip's transform and workers of torch's DataLoader, then the loop of open_clip_train.zero_shot. The
clock of the images starts when the first batch is there: starting the workers isn't counted. --samples and --classes
take a part of the folder. Prints one JSON object. Needs open_clip_torch and webdataset.
"""
import argparse
import json
import time
from pathlib import Path

import open_clip
import torch
import webdataset
from open_clip_train.precision import get_autocast


def load(name):
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)


def make_loader(given, transform):
    count = int((given.folder / "test/nshards.txt").read_text())
    shards = f"{given.folder}/test/{{0..{count - 1}}}.tar"
    data = webdataset.WebDataset(shards, shardshuffle=False, nodesplitter=lambda source: source)
    data = data.decode("pil").to_tuple("jpg;png;webp;jpeg", "cls").map_tuple(transform, None)
    return torch.utils.data.DataLoader(data.batched(given.batch), batch_size=None, num_workers=given.workers)


def time_classifier(model, tokenizer, given, autocast):
    names = (given.folder / "classnames.txt").read_text(encoding="utf-8").splitlines()[: given.classes]
    file = given.templates or given.folder / "zeroshot_classification_templates.txt"
    templates = [line.replace("{c}", "{}") for line in file.read_text(encoding="utf-8").splitlines()]
    start = time.perf_counter()
    with autocast():
        classifier = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    return classifier, len(names) * len(templates) / (time.perf_counter() - start)


def time_images(model, classifier, loader, samples, autocast):
    top1 = top5 = count = 0
    start = None
    with torch.inference_mode():
        for images, target in loader:
            start = start or time.perf_counter()
            images, target = images[: samples - count], target[: samples - count]
            with autocast():
                logits = 100.0 * model(image=images)[0] @ classifier
            hits = hits_of(logits, target)
            top1, top5, count = top1 + hits[0], top5 + hits[1], count + len(images)
            if count == samples:
                break
    return count / (time.perf_counter() - start), top1 / count, top5 / count, count


def hits_of(logits, target):
    """Of the first and the first five classes, as open_clip_train.zero_shot counts them."""
    correct = logits.topk(min(5, logits.shape[1]), 1, True, True)[1].t().eq(target.view(1, -1))
    return [float(correct[:k].reshape(-1).float().sum()) for k in (1, 5)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name, for random weights, or an open_clip folder")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--samples", type=int, default=256, help="images")
    parser.add_argument("--classes", type=int, help="the first so many; all by default")
    parser.add_argument("--templates", type=Path, help="in place of the folder's, one with {c} a line")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, transform, tokenizer = load(given.model)
    autocast = get_autocast("amp_bf16" if given.precision == "bf16" else "fp32", device_type="cpu")
    classifier, prompts_per_s = time_classifier(model, tokenizer, given, autocast)
    images_per_s, top1, top5, samples = time_images(model, classifier, make_loader(given, transform), given.samples, autocast)
    print(json.dumps({"program": f"open_clip {open_clip.__version__}, torch {torch.__version__}", "model": given.model,
                      "precision": given.precision, "batch": given.batch, "workers": given.workers, "samples": samples, "acc1": top1,
                      "acc5": top5, "images_per_s": images_per_s, "prompts_per_s": prompts_per_s}))


if __name__ == "__main__":
    main()
