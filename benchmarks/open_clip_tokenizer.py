#!/usr/bin/env python3
"""Times open_clip's tokenizer on the lines of a file on one core, as `clip_bench tokenizer` does for this library.

    open_clip_tokenizer.py FILE

Each repetition has a new tokenizer, whose word cache is empty. Prints one JSON object. Needs open_clip_torch.
"""
import argparse
import json
import time

import open_clip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--repetitions", type=int, default=1)
    given = parser.parse_args()
    with open(given.file, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    rates = []
    for _ in range(given.repetitions):
        tokenize = open_clip.get_tokenizer("ViT-B-32")
        start = time.perf_counter()
        tokenize(lines)
        rates.append(len(lines) / (time.perf_counter() - start))
    rates.sort()
    print(json.dumps({"program": f"open_clip {open_clip.__version__}", "captions": len(lines),
                      "captions_per_s": rates[len(rates) // 2], "captions_per_s_max": rates[-1]}))


if __name__ == "__main__":
    main()
