#!/usr/bin/env python3
"""Times training steps of open_clip on random data, as `clip_bench train` does for this library.

    open_clip_step.py MODEL fp32|bf16 BATCH STEPS TOKENS [--lock]

--lock: lock_image_tower(), as open_clip trains LiT. Prints one JSON object. Needs open_clip_torch.
"""
import argparse
import contextlib
import json
import resource
import time

import open_clip
import torch
from open_clip.loss import ClipLoss


def captions(rows, length, context, vocabulary):
    tokens = torch.zeros(rows, context, dtype=torch.long)
    tokens[:, : length - 1] = torch.randint(1, vocabulary - 2, (rows, length - 1))
    tokens[:, 0], tokens[:, length - 1] = vocabulary - 2, vocabulary - 1
    return tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("precision", choices=["fp32", "bf16"])
    parser.add_argument("batch", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = open_clip.create_model(options.model)
    if options.lock:
        model.lock_image_tower()
    model.train()
    size = model.visual.image_size
    size = size[0] if isinstance(size, (tuple, list)) else size
    images = torch.randn(options.batch, 3, size, size)
    texts = captions(options.batch, options.tokens, model.context_length, model.vocab_size)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    loss_of, seconds = ClipLoss(), []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        context = torch.autocast("cpu", dtype=torch.bfloat16) if options.precision == "bf16" else contextlib.nullcontext()
        with context:
            output = model(images, texts)
            loss = loss_of(output[0], output[1], output[2])
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[1:])  # the first step also takes the memory
    median = seconds[len(seconds) // 2]
    print(json.dumps({
        "program": f"open_clip {open_clip.__version__}, torch {torch.__version__}", "model": options.model,
        "precision": options.precision, "batch": options.batch, "tokens": options.tokens, "locked": options.lock,
        "samples_per_s": options.batch / median, "step_s_median": median, "step_s_min": seconds[0],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


if __name__ == "__main__":
    main()
