#!/usr/bin/env python3
"""Times open_clip's training loader on tar shards, as `clip_bench loader` does for this library.

    open_clip_loader.py SHARDS SAMPLES WORKERS BATCH EPOCHS

SHARDS is a brace list, SAMPLES what an epoch takes. The rate of an epoch leaves out its first batch, with which the
worker processes start. Prints one JSON object. Needs open_clip_torch.
"""
import argparse
import json
import time
import types

import open_clip
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset


def make_loader(given):
    options = types.SimpleNamespace(
        train_data=given.shards, val_data=None, dataset_resampled=False, train_num_samples=given.samples, val_num_samples=0,
        train_data_upsampling_factors=None, seed=0, workers=given.workers, batch_size=given.batch, world_size=1, rank=0, local_rank=0)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return get_wds_dataset(options, image_transform(224, is_train=True), True, tokenizer=tokenizer).dataloader


def epoch_rate(loader):
    count, skipped, start = 0, 0, None
    for images, _ in loader:
        count += len(images)
        if start is None:
            start, skipped = time.perf_counter(), count
    return (count - skipped) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    for name in ("samples", "workers", "batch", "epochs"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    loader = make_loader(given)
    rates = sorted(epoch_rate(loader) for _ in range(given.epochs))
    print(json.dumps({"program": f"open_clip {open_clip.__version__}", "shards": given.shards, "workers": given.workers,
                      "epochs": given.epochs, "images_per_s": rates[len(rates) // 2], "images_per_s_max": rates[-1]}))


if __name__ == "__main__":
    main()
