"""The virtual environment with open_clip that the benchmarks compare with: made once, then reused."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OPEN_CLIP = "3.3.0"
HERE = Path(__file__).resolve().parent

# Of the libraries that torch's CUDA wheel needs, these are not in the CUDA toolkit (scripts/deps.lock pins them).
BESIDE_TOOLKIT = ("nvidia-cusparselt-cu13", "nvidia-nvshmem-cu13", "nvidia-cufile")

# What open_clip and its training scripts import; open_clip itself is installed without its requirements, which would
# pull in another torch.
REQUIREMENTS = ("sympy", "networkx", "jinja2", "fsspec", "filelock", "typing_extensions", "numpy", "pillow", "ftfy", "regex", "tqdm",
                "safetensors", "huggingface_hub<1", "pandas", "pyyaml", "braceexpand", "setuptools")
PEER = ("timm", "webdataset==0.2.86", f"open_clip_torch=={OPEN_CLIP}")


class EnvironmentProblem(Exception):
    pass


def cache_folder():
    if os.environ.get("CONTRASTIVE_CACHE"):
        return Path(os.environ["CONTRASTIVE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contrastive"


def default_folder():
    return cache_folder() / f"open_clip-{OPEN_CLIP}"


def torchvision_of(torch_version):
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if major != 2:
        raise EnvironmentProblem(f"no torchvision is known for torch {torch_version}")
    return f"torchvision==0.{minor + 15}.*"


def has_toolkit():
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    return all(name in listing for name in ("libcudart.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libnccl.so.2"))


def pinned(name):
    for line in (HERE.parent / "scripts" / "deps.lock").read_text().splitlines():
        if line.startswith(name + " "):
            return f"{name}=={line.split()[1]}"
    raise EnvironmentProblem(f"scripts/deps.lock does not name {name}")


def versions_of(python):
    """{"open_clip", "torch"} of an interpreter, or None if it can't import them."""
    code = "import json, open_clip, torch; print(json.dumps({'open_clip': open_clip.__version__, 'torch': torch.__version__}))"
    result = subprocess.run([str(python), "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return None
    return json.loads(result.stdout.strip().splitlines()[-1])


def install(folder, torch_version, with_cuda):
    print(f"making the peer's environment in {folder} (torch {torch_version}, open_clip {OPEN_CLIP}): minutes, about 3 GB", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    wheels = cache_folder() / "wheels"
    found = ["--find-links", str(wheels)] if wheels.is_dir() else []
    torch = [f"torch=={torch_version}", torchvision_of(torch_version)]
    if with_cuda and has_toolkit():
        torch_command = [*pip, *found, "--no-deps", *torch, *map(pinned, BESIDE_TOOLKIT)]
    elif with_cuda:
        torch_command = [*pip, *found, *torch]
    else:
        torch_command = [*pip, "--index-url", "https://download.pytorch.org/whl/cpu", *torch]
    for command in ([*pip, *REQUIREMENTS], torch_command, [*pip, "--no-deps", *PEER]):
        if subprocess.run(command, check=False).returncode != 0:
            raise EnvironmentProblem(f"'{' '.join(command)}' failed; --venv DIR takes an environment made otherwise")


def ensure(folder, torch_version, with_cuda):
    """The interpreter of a virtual environment with the peer and this torch. Returns: (python, versions)."""
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        try:
            install(Path(folder), torch_version, with_cuda)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # half an environment would be taken for a whole one
            raise
    versions = versions_of(python)
    if versions is None:
        raise EnvironmentProblem(f"[{python}] can't import open_clip and torch: remove {folder}, or give another --venv")
    if versions["open_clip"] != OPEN_CLIP or re.match(r"[\d.]+", versions["torch"]).group() != torch_version:
        raise EnvironmentProblem(f"[{folder}] has open_clip {versions['open_clip']} on torch {versions['torch']}, but the comparison is "
                                 f"with open_clip {OPEN_CLIP} on torch {torch_version}: remove it, or give another --venv")
    return python, versions
