#!/usr/bin/env python3
"""Times open_clip's ClipLoss of random unit rows, forward and backward, as `clip_bench loss` does for this library.

    open_clip_loss.py ROWS [--dim 512] [--repetitions 3] [--threads 2]

Prints one JSON object. Needs open_clip_torch.
"""
import argparse
import json
import resource
import time

import open_clip
import torch
from open_clip.loss import ClipLoss


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    features = [torch.nn.functional.normalize(torch.randn(given.rows, given.dim), dim=1).requires_grad_() for _ in range(2)]
    scale, loss_of, seconds = torch.tensor(14.2857, requires_grad=True), ClipLoss(), []
    before = peak_mb()
    for _ in range(given.repetitions):
        start = time.perf_counter()
        loss_of(*features, scale).backward()
        seconds.append(time.perf_counter() - start)
        for tensor in (*features, scale):
            tensor.grad = None
    seconds.sort()
    print(json.dumps({"program": f"open_clip {open_clip.__version__}, torch {torch.__version__}", "rows": given.rows, "dim": given.dim,
                      "seconds_median": seconds[len(seconds) // 2], "seconds_min": seconds[0], "peak_extra_mb": peak_mb() - before}))


if __name__ == "__main__":
    main()
