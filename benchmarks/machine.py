"""What the benchmarks say about the machine: what it is, and whether something else uses it."""
import os
import resource
import subprocess
import time

QUIET_CORES = 0.1  # of other work that is let pass: a system's own processes


def cpu_count():
    return len(os.sched_getaffinity(0))


def describe():
    fields = {}
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    known = {"avx2": "avx2", "avx512f": "avx512", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    gpu = subprocess.run(["sh", "-c", "nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null"], capture_output=True, text=True, check=False)
    machine = {"processor": fields.get("model name", "unknown"), "cores": cpu_count(),
               "features": [name for flag, name in known.items() if flag in flags], "memory_gb": round(pages * page_size / 1e9, 1)}
    if gpu.stdout.strip():
        machine["gpu"] = gpu.stdout.strip().splitlines()[0]
    return machine


def busy_seconds():
    """Processor seconds that all processes together have used since the start, waiting for disks left out."""
    with open("/proc/stat", encoding="utf-8") as stream:
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in stream.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """The part of this process and of its children that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


class OtherLoad:
    """The processor cores that others use, on average, since it was made. Children count once they have ended."""

    def __init__(self):
        self.start, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def cores(self):
        seconds = time.monotonic() - self.start
        return max(0.0, (busy_seconds() - self.busy) - (own_seconds() - self.own)) / seconds


def cores_in_use_by_others(seconds=1.0):
    load = OtherLoad()
    time.sleep(seconds)
    return load.cores()


def wait_until_quiet(patience_s):
    """Waits while others use the machine, at most this long. Returns: the cores they used when last seen."""
    end = time.monotonic() + patience_s
    cores = cores_in_use_by_others()
    while cores > QUIET_CORES and time.monotonic() < end:
        cores = cores_in_use_by_others(min(5.0, max(1.0, end - time.monotonic())))
    return cores
