"""What this machine is: processor, accelerators, whether processes reach each other, disk, hub, Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from megadistill.doctor.checks import Finding

_MEETING = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2,
                        timeout=timedelta(seconds=60))
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 2, value
dist.destroy_process_group()
"""
_LITTLE_SPACE = 5e9


def processor() -> list[Finding]:
    """Model, cores, vector instructions, memory, and what bf16 costs here."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    allowed = len(os.sched_getaffinity(0))
    wanted = ("avx2", "avx512bw", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    native = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    bf16 = "native" if native else "no instructions for it: works, through fp32"
    return [
        Finding("cpu", info.get("model name", "unknown model")),
        Finding("cores", f"{allowed} usable of {os.cpu_count()}"),
        Finding("vector instructions", ", ".join(flag for flag in wanted if flag in flags) or "none of the usual"),
        Finding("torch uses", torch.backends.cpu.get_cpu_capability()),
        Finding("bf16 on the cpu", bf16),
        Finding(
            "threads",
            f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})",
        ),
        Finding("memory", _memory()),
    ]


def accelerators() -> list[Finding]:
    """The GPUs that torch sees, and those that it should."""
    found = [Finding("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", "unset (DeepSpeed guesses)"))]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if facts.major >= 8 else "no bf16: use engine precision fp16 or fp32"
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}, {bf16}"
        found.append(Finding(f"gpu {index}", name))
    if not torch.cuda.is_available():
        here = shutil.which("nvidia-smi") is not None and _lists_gpus()
        advice = "torch is a CPU build, or the driver is older than its CUDA" if here else ""
        value = "nvidia-smi lists some, torch sees none" if here else "none; training runs on the cpu"
        found.append(Finding("gpus", value, "note" if here else "fine", advice))
    return found


def processes() -> list[Finding]:
    """Whether two processes on this machine can form a group and add two numbers."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return [Finding("gloo", "this torch was built without it", "broken", "install another build of torch")]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _MEETING, f"{folder}/store", str(rank)],
                stderr=subprocess.PIPE,
                text=True,
                env=variables,
            )
            for rank in range(2)
        ]
        errors = []
        for rank in ranks:
            try:
                _, told = rank.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                rank.kill()
                _, told = rank.communicate()
                told += "timed out"
            if rank.returncode != 0:
                errors.append((told.strip().splitlines() or ["no message"])[-1])
    if errors:
        advice = "GLOO_SOCKET_IFNAME names the network interface, where the host name does not lead to one"
        return [Finding("gloo", f"two processes found no way to each other: {errors[0]}", "broken", advice)]
    found = [Finding("gloo", "two processes formed a group")]
    if "LOCAL_SIZE" in os.environ:
        text = "set: DeepSpeed may use CPU collectives that need AVX2 or AVX-512"
        found.append(Finding("LOCAL_SIZE", text, "note", "unset LOCAL_SIZE"))
    return found


def disk() -> list[Finding]:
    """Free space where runs, temporary files and hub downloads go."""
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "hub cache": _hub_cache()}
    found = []
    for name, path in places.items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        value = f"{free / 1e9:.1f} GB free  {path}" + ("" if writable else "  (not writable)")
        low = free < _LITTLE_SPACE or not writable
        found.append(Finding(name, value, "note" if low else "fine"))
    return found


def hub() -> list[Finding]:
    """Whether models and corpora would be looked for on the network."""
    flags = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
    told = ", ".join(f"{name}={value}" for name, value in flags.items() if value is not None)
    cached = sorted(path.name for path in _hub_cache().glob("*--*")) if _hub_cache().exists() else []
    return [
        Finding("offline flags", told or "none set: hub names are looked up on the network"),
        Finding("cached from the hub", f"{len(cached)} repositories"),
    ]


def slurm() -> list[Finding]:
    """Whether this is a job, and its shape."""
    shown = (
        "SLURM_JOB_ID",
        "SLURM_JOB_NODELIST",
        "SLURM_NTASKS",
        "SLURM_CPUS_PER_TASK",
        "SLURM_RESTART_COUNT",
    )
    inside = {name: os.environ[name] for name in shown if name in os.environ}
    sbatch = shutil.which("sbatch") or "not found"
    job = ", ".join(f"{name}={value}" for name, value in inside.items())
    return [Finding("sbatch", sbatch), Finding("job", job or "not inside one")]


def _cpuinfo() -> dict[str, str]:
    """The first processor's facts."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    sizes = {line.partition(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
    return f"{sizes.get('MemAvailable', 0):.1f} GiB available of {sizes.get('MemTotal', 0):.1f}"


def _lists_gpus() -> bool:
    result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return result.returncode == 0 and "GPU" in result.stdout


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
