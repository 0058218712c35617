#!/usr/bin/env python3
"""Fits logistic regressions with scikit-learn and with this library (`clip_bench logistic`) in turn, and compares
objective, accuracy and time.

    logistic_regression.py CLIP_BENCH [--features FILE | --samples 50000 --dim 512 --classes 10] [--c 0.316 ...]

FILE is a safetensors file with train_features, train_labels, test_features and test_labels; without it, features with a
falling spectrum and a mean far from 0, as image towers give, are made up. Each scikit-learn fit is a process of its own.
`loss difference` is (ours - scikit-learn's) / scikit-learn's, both objectives in fp64. Prints one JSON object a line.
Needs scikit-learn, NumPy and safetensors.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def make_features(given, path):
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    scales = np.arange(1, given.dim + 1) ** -0.5
    mean, centres = 2 * random.normal(size=given.dim), 0.6 * random.normal(size=(given.classes, given.dim)) * scales
    turn = np.linalg.qr(random.normal(size=(given.dim, given.dim)))[0]
    tensors = {}
    for part, count in (("train", given.samples), ("test", given.samples // 5)):
        labels = random.integers(0, given.classes, count)
        noise = given.noise * random.normal(size=(count, given.dim)) * scales
        tensors[f"{part}_features"] = np.ascontiguousarray((mean + centres[labels] + noise) @ turn, dtype="float32")
        tensors[f"{part}_labels"] = labels.astype("int64")
    save_file(tensors, path)


def fit_scikit_learn(given, path, c):
    """In this process: prints what it found."""
    import numpy as np
    import sklearn
    from safetensors.numpy import load_file
    from sklearn.linear_model import LogisticRegression

    tensors = load_file(path)
    x, y = tensors["train_features"].astype(given.dtype), tensors["train_labels"]
    start = time.perf_counter()
    model = LogisticRegression(C=c, solver="lbfgs", tol=given.tolerance, max_iter=given.max_iterations).fit(x, y)
    seconds = time.perf_counter() - start
    scores = x.astype("float64") @ model.coef_.T.astype("float64") + model.intercept_
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    scores -= scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    objective = c * losses.sum() + 0.5 * (model.coef_.astype("float64") ** 2).sum()
    accuracy = model.score(tensors["test_features"].astype(given.dtype), tensors["test_labels"])
    print(json.dumps({"program": f"scikit-learn {sklearn.__version__}", "seconds": seconds, "objective": objective,
                      "test_accuracy": accuracy, "iterations": int(model.n_iter_[0])}))


def output_of(command, threads):
    environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def compare(given, path, c):
    own = [given.clip_bench, "logistic", path, "--c", str(c), "--repetitions", "1", "--threads", str(given.threads)]
    peer = [sys.executable, __file__, given.clip_bench, "--features", path, "--c", str(c), "--tolerance", str(given.tolerance),
            "--max_iterations", str(given.max_iterations), "--dtype", given.dtype, "--peer"]
    ours, theirs = [], []
    for _ in range(given.rounds):
        ours.append(output_of(own, given.threads))
        theirs.append(output_of(peer, given.threads))
    fastest, peer_fastest = (min(ours, key=lambda r: r["seconds_min"]), min(theirs, key=lambda r: r["seconds"]))
    difference = fastest["objective"] / peer_fastest["objective"] - 1
    print(json.dumps({"c": c, "samples": fastest["samples"], "dim": fastest["dim"], "classes": fastest["classes"], "ours": fastest,
                      "scikit_learn": peer_fastest, "loss_difference": difference,
                      "accuracy_difference": fastest["test_accuracy"] - peer_fastest["test_accuracy"],
                      "speed_ratio": peer_fastest["seconds"] / fastest["seconds_min"]}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip_bench")
    parser.add_argument("--features")
    parser.add_argument("--samples", type=int, default=50000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--noise", type=float, default=3.0, help="of made-up features")
    parser.add_argument("--c", type=float, nargs="+", default=[0.01, 0.316, 10])
    parser.add_argument("--tolerance", type=float, default=1e-4, help="scikit-learn's")
    parser.add_argument("--max_iterations", type=int, default=1000, help="scikit-learn's")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of scikit-learn's features")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        fit_scikit_learn(given, given.features, given.c[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.features or os.path.join(folder, "features.safetensors")
        if not given.features:
            make_features(given, path)
        for c in given.c:
            compare(given, path, c)


if __name__ == "__main__":
    main()
