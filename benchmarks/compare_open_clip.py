#!/usr/bin/env python3
"""Measures this library beside open_clip 3.3.0 on the same torch, in turn, and writes a table.

    python3 benchmarks/compare_open_clip.py --bin build/default/bin --data DIR --json FILE --markdown FILE

Makes a virtual environment with open_clip on the first run. Rows whose data DIR lacks are left out with a reason. With
--json of an earlier run its rows are kept (--again measures them anew), so that an interrupted run goes on.
docs/performance.md explains the rows.
"""
import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

sys.dont_write_bytecode = True  # the modules beside this one would leave their bytecode in the repository
import machine
import peer_environment

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
CIFAR_SECONDS = 600


class Problem(Exception):
    """Ends the program with one line."""


@dataclass(frozen=True)
class Measure:
    """One row of the table."""
    name: str
    title: str
    unit: str
    key: str                # in the JSON object that either side prints
    kind: str               # rate: ours / peer, the more the better; seconds: peer / ours; memory: ours / peer, the less the better
    least: Optional[float] = None
    aim: Optional[float] = None
    on_value: bool = False  # the targets are of our value, not of the ratio

    def ratio(self, peer, ours):
        return peer / ours if self.kind == "seconds" else ours / peer

    def is_met(self, figure, target):
        less_is_better = self.kind == "memory" or (self.on_value and self.kind == "seconds")
        return figure <= target if less_is_better else figure >= target

    def target_text(self, target):
        if target is None:
            return ""
        return f"{target:g} {self.unit}" if self.on_value else f"{target:g}x"


@dataclass
class Job:
    """What is run on each side; gives one row or several."""
    name: str
    measures: list
    ours: Callable                      # () -> JSON object
    peer: Optional[Callable] = None
    needs: list = field(default_factory=list)
    rounds: Optional[int] = None        # in place of --rounds
    by_default: bool = True


# ---- running ---------------------------------------------------------------------------------------------------------

def last_json(command, environment=None):
    """Runs a command whose last line of output is a JSON object."""
    command = [str(part) for part in command]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})}  # both sides on the processor
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["(no message)"])[-1]
        raise Problem(f"'{' '.join(command)}' ended with {result.returncode}: {last}")
    try:
        return json.loads(result.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise Problem(f"'{' '.join(command)}' printed no result") from error


class Programs:
    """Both sides' commands."""

    def __init__(self, binaries, python):
        self.binaries, self.python = binaries, python

    def bench(self, *arguments):
        return lambda: last_json([self.binaries / "clip_bench", *arguments])

    def peer(self, script, *arguments, environment=None):
        return lambda: last_json([self.python, "-W", "ignore", HERE / script, *arguments], environment)


def timed_lines(command):
    """Yields (seconds since the start, line) of a command's output, and fails if it does. Sending True asks it to stop."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                stop = yield time.monotonic() - start, line
                if stop:
                    process.terminate()
        errors.seek(0)
        if process.returncode != 0:
            raise Problem(f"'{command[0]}' ended with {process.returncode}: {errors.read().strip()[-300:]}")


# ---- what is measured ------------------------------------------------------------------------------------------------

def train_job(programs, name, title, model, precision, batch, tokens, steps, least, aim, memory=None):
    measures = [Measure(name, title, "samples/s", "samples_per_s", "rate", least, aim)]
    if memory is not None:
        measures.append(Measure(f"{name}_memory", f"peak memory of that step ({tokens} tokens)", "MB", "peak_memory_mb", "memory", *memory))
    ours = programs.bench("train", "--model", model, "--precision", precision, "--batch-size", batch, "--tokens", tokens, "--steps", steps,
                          "--threads", machine.cpu_count())
    peer = programs.peer("open_clip_step.py", model, precision.removeprefix("amp_"), batch, steps, tokens, "--threads", machine.cpu_count())
    return Job(name, measures, ours, peer)


def train_jobs(programs):
    return [
        train_job(programs, "vit_b32_fp32_22", "ViT-B-32 step, fp32, batch 32, 22 tokens", "ViT-B-32", "fp32", 32, 22, 2, 1.6, 2.2),
        train_job(programs, "vit_b32_fp32_77", "ViT-B-32 step, fp32, batch 32, 77 tokens", "ViT-B-32", "fp32", 32, 77, 2, 1.15, 1.4),
        train_job(programs, "vit_b32_bf16_22", "ViT-B-32 step, bf16, batch 64, 22 tokens", "ViT-B-32", "amp_bf16", 64, 22, 2, 2.4, 3.5, (0.8, 0.5)),
        train_job(programs, "vit_b32_bf16_77", "ViT-B-32 step, bf16, batch 64, 77 tokens", "ViT-B-32", "amp_bf16", 64, 77, 2, 1.8, 2.5),
        train_job(programs, "vit_b16_bf16", "ViT-B-16 step, bf16, batch 16, 22 tokens", "ViT-B-16", "amp_bf16", 16, 22, 2, 1.8, 2.5),
        train_job(programs, "rn50_fp32", "RN50 step, fp32, batch 32, 22 tokens", "RN50", "fp32", 32, 22, 2, 1.2, 1.6),
    ]


def loader_job(programs, name, title, shards, samples, workers, epochs, targets):
    measure = Measure(name, f"{title}, {workers} worker{'s' if workers > 1 else ''}", "images/s", "images_per_s", "rate", *targets)
    ours = programs.bench("loader", shards, "--workers", workers, "--batch-size", 32, "--epochs", epochs)
    peer = programs.peer("open_clip_loader.py", shards, samples, workers, 32, epochs)
    return Job(name, [measure], ours, peer, ends_of(shards))


def ends_of(shards):
    """The first and the last file of a brace list."""
    return [Path(re.sub(r"\{(\d+)\.\.(\d+)\}", end, str(shards))) for end in (r"\1", r"\2")]


def loader_jobs(programs, data):
    photographs, small = data / "imagenet_sample/test/{0..3}.tar", data / "cifar10/train/{00000..00007}.tar"
    jobs = []
    for workers in (1, 2):
        jobs.append(loader_job(programs, f"loader_imagenet_{workers}", "loader, photographs of 109 KB to 224", photographs, 480, workers, 3, (4, 6)))
        jobs.append(loader_job(programs, f"loader_cifar10_{workers}", "loader, CIFAR-10 shards to 224", small, 7680, workers, 1, (4, 8)))
    whole = data / "cifar10/train/{00000..00049}.tar"
    memory = Measure("loader_memory", "loader, growth of memory over 200,000 samples", "MB", "memory_mb_growth", "memory", 32, on_value=True)
    jobs.append(Job("loader_memory", [memory], programs.bench("loader", whole, "--workers", 2, "--samples", 200000), None, ends_of(whole), 1))
    return jobs


def tokenizer_job(programs, data):
    captions = data / "prompts/clip_26_datasets_rows.txt"
    measure = Measure("tokenizer", "tokenizer, prompts of 26 data sets, one core", "captions/s", "captions_per_s", "rate", 10, 30)
    return Job("tokenizer", [measure], programs.bench("tokenizer", captions), programs.peer("open_clip_tokenizer.py", captions), [captions])


def loss_job(programs):
    measures = [Measure("loss_8192", "contrastive loss, fp32, 8,192 x 512, forward and backward", "s", "seconds_median", "seconds"),
                Measure("loss_8192_memory", "extra memory of that loss", "MB", "peak_extra_mb", "memory")]
    return Job("loss_8192", measures, programs.bench("loss", "--rows", 8192, "--repetitions", 3, "--threads", machine.cpu_count()),
               programs.peer("open_clip_loss.py", 8192, "--threads", machine.cpu_count()))


START_CONFIG = """\
name: start
model: RN-tiny
data:
  train: {folder}/shards/train/00000.tar
train: {{steps: 1, global_batch: 32}}
optim: {{warmup_steps: 1}}
log: {{every_steps: 1}}
"""


class StartTime:
    """Seconds from starting clip_train to the line of its first step. The shards and their index are made before."""

    def __init__(self, binaries, folder):
        self.binaries, self.folder, self.runs = binaries, folder / "start", 0

    def prepare(self):
        self.folder.mkdir()
        command = [self.binaries / "clip_data", "synth", self.folder / "shards", "--samples", 1000, "--samples-per-shard", 1000,
                   "--test-samples", 24, "--image-size", 64]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        (self.folder / "start.yaml").write_text(START_CONFIG.format(folder=self.folder))
        self.first_step()

    def first_step(self):
        self.runs += 1
        command = [self.binaries / "clip_train", "--config", self.folder / "start.yaml", f"output={self.folder}/{self.runs}"]
        seconds = [seconds for seconds, line in timed_lines(command) if line.startswith("step 1/")]
        if not seconds:
            raise Problem("clip_train printed no line of its first step")
        return seconds[0]

    def __call__(self):
        if not self.folder.exists():
            self.prepare()
        return {"seconds": self.first_step()}


class CifarRun:
    """Top-1 (%) of clip_train's last zero-shot evaluation within ten minutes of its start."""

    def __init__(self, binaries, data, config, folder):
        self.binaries, self.data, self.folder = binaries, data / "cifar10", folder
        self.command = [binaries / "clip_train", "--config", config, f"data.train={self.data}/train/{{00000..00049}}.tar",
                        f"eval.zero_shot.data={self.data}", f"output={folder}", "name=cifar10"]

    def __call__(self):
        lines, result = timed_lines(self.command), None
        try:
            seconds, line = next(lines)
            while True:
                found = re.match(r"step (\d+): zero-shot .*top-1 ([\d.]+) %", line)
                if found and seconds <= CIFAR_SECONDS:
                    result = {"step": int(found[1]), "top1": float(found[2]), "seconds": seconds}
                seconds, line = lines.send(seconds > CIFAR_SECONDS)
        except StopIteration:
            pass
        if result is None:
            raise Problem(f"clip_train evaluated nothing within {CIFAR_SECONDS} s")
        return result


def cifar_job(programs, given, folder):
    measure = Measure("cifar", "CIFAR-10 from shards, zero-shot top-1 after 10 minutes", "%", "top1", "rate", 78, 85, on_value=True)
    peer = None
    if given.peer_cifar:
        config = given.cifar_config.read_text(encoding="utf-8")
        setting = {key: re.search(rf"^ *{key}: *(\S+)", config, re.MULTILINE)[1] for key in ("model", "precision", "global_batch")}
        peer = programs.peer("open_clip_cifar.py", given.data / "cifar10", REPOSITORY / f"configs/models/{setting['model']}.json",
                             "--seconds", CIFAR_SECONDS, "--batch", setting["global_batch"],
                             "--precision", setting["precision"].removeprefix("amp_"))
    needs = [given.data / "cifar10/train/00000.tar", given.data / "cifar10/train/00049.tar", given.data / "cifar10/test"]
    return Job("cifar", [measure], CifarRun(given.bin, given.data, given.cifar_config, folder), peer, needs, 1, by_default=False)


def all_jobs(programs, given, folder):
    start = Measure("start", "start of clip_train to its first step", "s", "seconds", "seconds", 3, 1, on_value=True)
    return [*train_jobs(programs), *loader_jobs(programs, given.data), tokenizer_job(programs, given.data), loss_job(programs),
            Job("start", [start], StartTime(given.bin, folder)), cifar_job(programs, given, folder)]


# ---- measuring -------------------------------------------------------------------------------------------------------

def measure_once(run, patience_s):
    """Runs one side once nobody else uses the machine. Returns: (its JSON object, cores that others used meanwhile)."""
    before = machine.wait_until_quiet(patience_s)
    load = machine.OtherLoad()
    result = run()
    others = max(load.cores(), before)
    if others > machine.QUIET_CORES:
        print(f"  warning: others used {others:.2f} cores; the row is marked", file=sys.stderr)
    return result, others


def run_job(job, rounds, patience_s):
    sides = {name: run for name, run in (("peer", job.peer), ("ours", job.ours)) if run is not None}
    results = {name: [] for name in sides}
    others = 0.0
    for number in range(job.rounds or rounds):
        for name, run in sides.items():
            result, cores = measure_once(run, patience_s)
            others = max(others, cores)
            absent = [measure.key for measure in job.measures if measure.key not in result]
            if absent:
                raise Problem(f"{job.name}, {name}: no {', '.join(absent)} in {result}")
            results[name].append(result)
            values = ", ".join(f"{result[m.key]:.4g} {m.unit}" for m in job.measures)
            print(f"{job.name}, round {number + 1}, {name}: {values}", file=sys.stderr, flush=True)
    return {measure.name: row_of(measure, results, others) for measure in job.measures}


def figures(values):
    middle = statistics.median(values)
    return {"values": values, "median": middle, "spread": (max(values) - min(values)) / abs(middle) if middle else 0.0}


def row_of(measure, results, others):
    row = {"title": measure.title, "unit": measure.unit, "kind": measure.kind, "date": datetime.datetime.now().isoformat(timespec="seconds"),
           "least": measure.target_text(measure.least), "aim": measure.target_text(measure.aim), "other_load_cores": round(others, 3),
           "disturbed": others > machine.QUIET_CORES}
    for side, objects in results.items():
        row[side] = figures([entry[measure.key] for entry in objects])
    if "peer" in row and row["peer"]["median"] and row["ours"]["median"]:
        row["ratio"] = measure.ratio(row["peer"]["median"], row["ours"]["median"])
    figure = row["ours"]["median"] if measure.on_value else row.get("ratio")
    for name, target in (("least_met", measure.least), ("aim_met", measure.aim)):
        if target is not None and figure is not None:
            row[name] = measure.is_met(figure, target)
    return row


def add_scaling(rows):
    """One worker to two, of our loader, from the rows of the photographs."""
    one, two = rows.get("loader_imagenet_1"), rows.get("loader_imagenet_2")
    if one is None or two is None:
        return
    measure = Measure("loader_scaling", "loader, photographs: 2 workers to 1", "x", "", "rate", 1.8, on_value=True)
    scaling = two["ours"]["median"] / one["ours"]["median"]
    rows["loader_scaling"] = {
        "title": measure.title, "unit": "x", "kind": "rate", "date": two["date"], "least": "1.8x", "aim": "", "least_met": measure.is_met(scaling, 1.8),
        "other_load_cores": max(one["other_load_cores"], two["other_load_cores"]), "disturbed": one["disturbed"] or two["disturbed"],
        "ours": figures([scaling])}
    if two["peer"]["median"] and one["peer"]["median"]:
        rows["loader_scaling"]["peer"] = figures([two["peer"]["median"] / one["peer"]["median"]])


# ---- the result ------------------------------------------------------------------------------------------------------

def number(value):
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def side_text(row, side):
    if side not in row:
        return ""
    spread = f" ± {100 * row[side]['spread'] / 2:.0f} %" if len(row[side]["values"]) > 1 else ""
    return f"{number(row[side]['median'])}{spread}"


def target_cell(row, name):
    if not row.get(name):
        return ""
    met = row.get(f"{name}_met")
    return row[name] if met is None else f"{row[name]} {'✓' if met else '✗'}"


def markdown(report):
    about, versions = report["machine"], report["versions"]
    lines = [f"Measured {report['date'][:10]}: {about['processor']}, {about['cores']} cores ({', '.join(about['features']) or 'no AVX2'}), "
             f"{about['memory_gb']} GB; {versions['ours']}; open_clip {versions['open_clip']} on torch {versions['torch']}. Medians of rounds in turn; ± is half of the range.", "",
             "| what | open_clip | ours | unit | ratio | at least | aim |", "|---|--:|--:|---|--:|---|---|"]
    for row in report["rows"].values():
        ratio = f"{row['ratio']:.2f}x" if "ratio" in row else ""
        mark = " (!)" if row["disturbed"] else ""
        lines.append(f"| {row['title']}{mark} | {side_text(row, 'peer')} | {side_text(row, 'ours')} | {row['unit']} | {ratio} | "
                     f"{target_cell(row, 'least')} | {target_cell(row, 'aim')} |")
    if any(row["disturbed"] for row in report["rows"].values()):
        lines += ["", f"(!): others used more than {machine.QUIET_CORES} cores while this was measured."]
    for name, reason in report["left_out"].items():
        lines += ["", f"Left out: {name}, {reason}."]
    return "\n".join(lines) + "\n"


def write(path, text):
    """Whole or not at all: a run that is stopped leaves the rows that are done."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def load_report(path):
    if path is None or not path.exists():
        return {"rows": {}}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report if isinstance(report.get("rows"), dict) else {"rows": {}}
    except (ValueError, AttributeError) as error:
        raise Problem(f"[{path}] is no result of an earlier run: {error}") from error


# ---- command line ----------------------------------------------------------------------------------------------------

def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=REPOSITORY / "build/default/bin", help="folder of the programs (build/default/bin)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CONTRASTIVE_DATA", "data")),
                        help="folder with cifar10, imagenet_sample and prompts (default: $CONTRASTIVE_DATA)")
    parser.add_argument("--venv", type=Path, default=peer_environment.default_folder(), help="the peer's environment, made if it is not there")
    parser.add_argument("--only", help="names of rows, separated by commas; --list shows them")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="result file; its rows of an earlier run are kept")
    parser.add_argument("--again", action="store_true", help="measure rows that the result file has anew")
    parser.add_argument("--markdown", type=Path, help="file for the table, which also goes to stdout")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait before each run while others use the machine (120)")
    parser.add_argument("--cifar-config", type=Path, default=REPOSITORY / "configs/cifar10_rn.yaml", help="for --only cifar")
    parser.add_argument("--peer-cifar", action="store_true", help="with --only cifar: ten minutes of open_clip, too")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    return given


def our_version(binaries):
    """(text, LibTorch's version, whether with CUDA) of the programs."""
    program = binaries / "clip_bench"
    if not program.exists():
        raise Problem(f"[{program}] does not exist: build first, or give --bin")
    text = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    found = re.search(r"LibTorch ([\d.]+)", text)
    if not found:
        raise Problem(f"'{program} --version' names no LibTorch: {text}")
    return text, found[1], "CUDA" in text


def chosen(jobs, only):
    if only is None:
        return [job for job in jobs if job.by_default]
    names = only.split(",")
    unknown = set(names) - {job.name for job in jobs}
    if unknown:
        raise Problem(f"--only: no row is named {', '.join(sorted(unknown))}; there are {', '.join(job.name for job in jobs)}")
    return [job for job in jobs if job.name in names]


def save(report, given, order):
    rows = report["rows"]
    add_scaling(rows)
    report["rows"] = {name: rows[name] for name in sorted(rows, key=lambda name: order.get(name, len(order)))}
    if given.json is not None:
        write(given.json, json.dumps(report, indent=1) + "\n")
    if given.markdown is not None:
        write(given.markdown, markdown(report))


def measure_all(given, folder):
    text, torch_version, with_cuda = our_version(given.bin)
    report = load_report(given.json)
    python, versions = peer_environment.ensure(given.venv.absolute(), torch_version, with_cuda)
    about = {"machine": machine.describe(), "versions": {"ours": text, **versions}}
    differs = [name for name, now in about.items() if report["rows"] and report.get(name) != now]
    if differs and not given.again:
        raise Problem(f"[{given.json}] has rows of other {' and '.join(differs)}; --again measures all of them anew")
    if differs:
        report["rows"] = {}
    report.update({"date": datetime.datetime.now().isoformat(timespec="seconds"), **about, "left_out": {}})
    jobs = all_jobs(Programs(given.bin, python), given, folder)
    names = [measure.name for job in jobs for measure in job.measures]
    names.insert(names.index("loader_memory"), "loader_scaling")
    order = {name: position for position, name in enumerate(names)}
    for job in chosen(jobs, given.only):
        missing = [path for path in job.needs if not path.exists()]
        if missing:
            report["left_out"][job.name] = f"[{missing[0]}] does not exist"
            print(f"{job.name} is left out: [{missing[0]}] does not exist", file=sys.stderr)
        elif given.again or not all(measure.name in report["rows"] for measure in job.measures):
            try:
                report["rows"].update(run_job(job, given.rounds, given.patience))
            except Problem as problem:
                report["left_out"][job.name] = str(problem)
                print(f"{job.name} is left out: {problem}", file=sys.stderr)
        save(report, given, order)
    print(markdown(report), end="")


def main():
    given = parse_arguments()
    given.bin, given.data = given.bin.absolute(), given.data.absolute()
    try:
        if given.list:
            print("\n".join(job.name for job in all_jobs(Programs(given.bin, Path("python")), given, Path("."))))
            return 0
        with tempfile.TemporaryDirectory() as folder:
            measure_all(given, Path(folder))
        return 0
    except (Problem, peer_environment.EnvironmentProblem, OSError, subprocess.CalledProcessError) as error:
        print(f"compare_open_clip.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("compare_open_clip.py: stopped; rows that are done stand in --json", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
