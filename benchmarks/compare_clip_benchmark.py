#!/usr/bin/env python3
"""Evaluates one model on the same folders with CLIP_benchmark and with clip_eval, and compares the figures.

    compare_clip_benchmark.py --bin build/default/bin --zero-shot DIR... --retrieval DIR... [--checkpoint FOLDER]

Both load the same open_clip folder; without --checkpoint one with random weights is made. Folders are in CLIP_benchmark's
layout, a missing dataset_type.txt of a retrieval folder is supplied. CLIP_benchmark runs as its own command line program
runs it. Exit status 1: a figure differs by more than --tolerance points. --explain embeds the images with both and
lists what changed its first class: where features are equal to rounding and only close calls change, the rest is
explained; where pixels differ, features do by far more.

Needs an interpreter with open_clip_torch and CLIP_benchmark:
    pip install clip-benchmark==1.6.2 "numpy<2.4"      # --no-deps and its requirements, beside a torch that is there
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECALLS = (1, 5, 10)
PIXELS_DIFFER = 1e-3  # distance of two features of length 1: rounding gives about 1e-6 in fp32


class Problem(Exception):
    """Ends the program with one line."""


# ---- the model and the data ------------------------------------------------------------------------------------------

def make_model(name, seed, folder):
    """An open_clip folder of a model with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    return folder


def prepare_folder(source, task, shards, scratch):
    """A folder of links to source with its first shards and the dataset_type.txt that its task needs."""
    folder = scratch / f"{task}_{source.name}"
    (folder / "test").mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.name != "dataset_type.txt":
            (folder / path.name).symlink_to(path.resolve())
    count = int((source / "test/nshards.txt").read_text())
    count = min(count, shards) if shards else count
    for index in range(count):
        (folder / f"test/{index}.tar").symlink_to((source / f"test/{index}.tar").resolve())
    (folder / "test/nshards.txt").write_text(f"{count}\n")
    kind = source / "dataset_type.txt"
    if task == "retrieval":
        (folder / kind.name).write_text("retrieval\n")
    elif kind.exists():
        (folder / kind.name).write_text(kind.read_text())
    return folder


# ---- both sides ------------------------------------------------------------------------------------------------------

def run(command):
    command = [str(part) for part in command]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}  # both sides on the processor
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["(no message)"])[-1]
        raise Problem(f"'{' '.join(command)}' ended with {result.returncode}: {last}")


def their_metrics(task, folder, given, scratch):
    output = scratch / "theirs.json"
    command = [sys.executable, "-m", "clip_benchmark.cli", "eval", "--dataset", f"wds/{folder.name}", "--dataset_root", folder,
               "--model", f"local-dir:{given.checkpoint}", "--pretrained", "", "--task", "zeroshot_" + task, "--num_workers", 1,
               "--recall_k", *RECALLS, "--output", output, "--quiet"]
    run(command + (["--no_amp"] if given.precision == "fp32" else []))
    return json.loads(output.read_text())["metrics"]


def our_metrics(task, folder, given, scratch):
    output = scratch / "ours.json"
    program = "retrieval" if task == "retrieval" else "zero-shot"
    run([given.bin / "clip_eval", program, "--checkpoint", given.checkpoint, "--data", folder, "--precision", given.precision,
         "--output", output])
    return json.loads(output.read_text())["metrics"]


def compare(task, folder, name, given, scratch):
    """Rows (data, metric, theirs, ours, difference in points) of the metrics that CLIP_benchmark gives."""
    theirs, ours = their_metrics(task, folder, given, scratch), our_metrics(task, folder, given, scratch)
    rows = []
    for key, value in theirs.items():
        if math.isnan(value):  # acc5 of fewer than five classes
            continue
        own = ours.get(key, math.nan)
        rows.append({"data": name, "metric": key, "theirs": value, "ours": own, "points": 100 * (own - value)})
    return rows


# ---- what remains ----------------------------------------------------------------------------------------------------

def our_features(kind, folder, given, scratch):
    from safetensors.torch import load_file

    output = Path(tempfile.mkdtemp(dir=scratch)) / f"{kind}.safetensors"
    last = int((folder / "test/nshards.txt").read_text()) - 1
    shards = f"{folder}/test/{{0..{last}}}.tar"
    run([given.bin / "clip_embed", kind, shards, "--checkpoint", given.checkpoint, "--output", output, "--precision", given.precision])
    return next(iter(load_file(output).values()))


class Peer:
    """CLIP_benchmark's model and data of one folder."""

    def __init__(self, task, folder, given):
        import torch
        from clip_benchmark.datasets.builder import build_dataset
        from clip_benchmark.models import load_clip

        self.amp = given.precision != "fp32"
        self.model, transform, self.tokenizer = load_clip("open_clip", f"local-dir:{given.checkpoint}", "", None, "cpu")
        self.model.eval()
        self.data = build_dataset(f"wds/{folder.name}", str(folder), transform, task="zeroshot_" + task)
        self.loader = torch.utils.data.DataLoader(self.data.batched(64), batch_size=None, num_workers=1)

    def classifier(self):
        from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

        return zero_shot_classifier(self.model, self.tokenizer, self.data.classes, self.data.templates, "cpu", amp=self.amp).float()

    def image_features(self):
        """(features of length 1, what stands beside the images)."""
        import torch

        features, others = [], []
        with torch.no_grad(), torch.autocast("cpu", enabled=self.amp):
            for images, other in self.loader:
                features.append(torch.nn.functional.normalize(self.model.encode_image(images).float(), dim=-1))
                others.extend(other)
        return torch.cat(features), others


def explain(task, folder, name, given, scratch):
    """Lines about the features of both sides and, for zero-shot, the samples whose first class is another."""
    peer = Peer(task, folder, given)
    theirs, _ = peer.image_features()
    ours = our_features("images", folder, given, scratch)
    if len(theirs) != len(ours):
        raise Problem(f"[{name}] has {len(theirs)} images for CLIP_benchmark and {len(ours)} for clip_embed")
    distance = (theirs - ours).norm(dim=1)
    lines = [f"{name}: distance of image features: median {distance.median():.1e}, largest {distance.max():.1e}; "
             f"{(distance > PIXELS_DIFFER).sum()} of {len(theirs)} over {PIXELS_DIFFER:g}"]
    if task == "retrieval":
        return lines
    classifier = peer.classifier()
    logits, other_logits = 100 * theirs @ classifier, 100 * ours @ classifier
    first = logits.topk(2, dim=1).values
    margin, changed = first[:, 0] - first[:, 1], logits.argmax(1) != other_logits.argmax(1)
    lines.append(f"{name}: first class differs for {changed.sum()} of {len(changed)} images; median margin of all {margin.median():.1e}, "
                 f"largest change of a logit {(logits - other_logits).abs().max():.1e}")
    for index in changed.nonzero().flatten().tolist()[:20]:
        lines.append(f"{name}: image {index}: margin {margin[index]:.1e}, distance of features {distance[index]:.1e}")
    return lines


# ----------------------------------------------------------------------------------------------------------------------

def print_table(rows, tolerance):
    print(f"{'data':20} {'metric':28} {'CLIP_benchmark':>15} {'clip_eval':>10} {'points':>8}")
    for row in rows:
        mark = "" if abs(row["points"]) <= tolerance else "  (!)"
        print(f"{row['data']:20} {row['metric']:28} {100 * row['theirs']:15.3f} {100 * row['ours']:10.3f} {row['points']:8.3f}{mark}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder with clip_eval and clip_embed")
    parser.add_argument("--zero-shot", type=Path, nargs="+", default=[], metavar="DIR", help="folders to classify")
    parser.add_argument("--retrieval", type=Path, nargs="+", default=[], metavar="DIR", help="folders with captions (.txt)")
    parser.add_argument("--checkpoint", type=Path, help="an open_clip folder; without it a model with random weights is made")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name of that model, as RN50")
    parser.add_argument("--seed", type=int, default=0, help="of its weights")
    parser.add_argument("--precision", choices=["fp32", "amp_bf16"], default="fp32")
    parser.add_argument("--shards", type=int, default=0, help="of each folder the first so many; 0: all")
    parser.add_argument("--tolerance", type=float, default=0.05, help="in points")
    parser.add_argument("--explain", action="store_true", help="compare the features, too")
    parser.add_argument("--json", type=Path, help="writes the rows to this file")
    given = parser.parse_args()
    if not given.zero_shot and not given.retrieval:
        parser.error("--zero-shot or --retrieval is needed")
    return given


def compare_all(given, scratch):
    if given.checkpoint is None:
        given.checkpoint = make_model(given.model, given.seed, scratch / given.model)
    given.checkpoint = given.checkpoint.resolve()
    rows, lines = [], []
    for task, sources in (("classification", given.zero_shot), ("retrieval", given.retrieval)):
        for source in sources:
            folder = prepare_folder(source, task, given.shards, scratch)
            print(f"{task}: {source}", file=sys.stderr, flush=True)
            rows += compare(task, folder, source.name, given, scratch)
            if given.explain:
                lines += explain(task, folder, source.name, given, scratch)
    print_table(rows, given.tolerance)
    print(*lines, sep="\n", end="\n" if lines else "")
    if given.json:
        given.json.write_text(json.dumps({"precision": given.precision, "rows": rows, "explanation": lines}, indent=2))
    return all(abs(row["points"]) <= given.tolerance for row in rows)


def main():
    given = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="compare_clip_benchmark_") as scratch:
        try:
            return 0 if compare_all(given, Path(scratch)) else 1
        except Problem as problem:
            print(f"compare_clip_benchmark.py: {problem}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
