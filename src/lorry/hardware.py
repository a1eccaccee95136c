"""What the machine offers: device and precision, a GPU that is there but cannot be used (an error), a network."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lorry.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator

# Limit, use and statistics of a container's memory, by the second and the first version of control groups.
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
# Held while something is copied to a GPU: CUDA refuses pinned memory, in any thread, while a graph is captured.
COPYING = threading.Lock()
# Options of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# The oldest driver that runs a CUDA generation: https://docs.nvidia.com/deploy/cuda-compatibility/
OLDEST_DRIVER = {"12": "525", "13": "580"}


def check_gpu() -> None:
    """Check that the GPU, where there is one, can be used: training on the CPU must not be a surprise.

    `CUDA_VISIBLE_DEVICES=""` (or -1) means that it is not wanted.

    Raises:
        UserError: The driver shows a GPU on which PyTorch cannot compute.
    """
    import torch

    found = gpu_of_driver()
    if not found or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    try:
        torch.cuda.init()
        torch.ones(1, device="cuda").add(1).item()  # also fails where the GPU is too old for the kernels
    except Exception as error:  # torch raises RuntimeError, AssertionError and types of its own
        built_for = torch.version.cuda or "none"
        oldest = OLDEST_DRIVER.get(built_for.split(".")[0], "a newer one")
        raise UserError(
            f"there is a GPU ({', '.join(found)}) that PyTorch {torch.__version__} (CUDA {built_for}) cannot use: "
            + str(error).split("\n", maxsplit=1)[0][:300],
            f"CUDA {built_for} needs driver {oldest} or newer: update the host's driver, or build the image with an "
            "older torch (--build-arg TORCH_VERSION=…). To train on the CPU all the same, set CUDA_VISIBLE_DEVICES=-1.",
        ) from None


def make_accelerator(precision: str) -> tuple[Accelerator, str]:
    """Return accelerate's Accelerator, which owns the device, gradient scaling and clipping, and the precision taken.

    A CUDA device where there is one, else the CPU: Apple's GPU is not tested. The model is not handed to `prepare`, for
    its frozen weights are in the compute precision already and autocast would only convert the adapters' gradients.

    Args:
        precision: auto, bf16, fp16 or fp32.

    Raises:
        UserError: There is a GPU that cannot be used.
    """
    import torch
    from accelerate import Accelerator
    from torch.amp.grad_scaler import GradScaler

    check_gpu()
    on_gpu = torch.cuda.is_available()
    taken = choose_precision(precision, torch.device("cuda" if on_gpu else "cpu"))
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="no" if taken == "fp32" else taken)
    if taken == "fp16" and not on_gpu:  # accelerate scales fp16 gradients on GPUs alone; they underflow here too
        accelerator.native_amp, accelerator.scaler = True, GradScaler("cpu")
    return accelerator, taken


def choose_precision(asked: str, device: torch.device) -> str:
    """Return bf16, fp16 or fp32.

    `auto` takes what the hardware multiplies natively. On CUDA the compute capability decides: torch's
    `is_bf16_supported()` is also true where bf16 is emulated (T4), and slow.
    """
    import torch

    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        capability = torch.backends.cpu.get_cpu_capability()
        flags = _cpu_flags()
        return "bf16" if "AVX512" in capability and flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    return "fp32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def let_waiting_threads_sleep() -> None:
    """Let a thread that waits for others sleep soon; to be called before torch is imported.

    OpenMP lets it spin for milliseconds, which on a busy machine takes the time that those others need: training, and a
    stop, then take many times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, for the next tensor; to be called before threads are started.

    glibc hands large blocks back to the kernel, which clears every page of the next one: on a CPU that takes up to a
    tenth of a training step. All threads share one arena, so that they use each other's memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # of glibc alone
    if mallopt is not None:
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def gpu_of_driver() -> tuple[str, ...]:
    """Return name and driver version of the first GPU that NVIDIA's driver shows, or nothing where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        if lines := done.stdout.strip().splitlines():
            name, driver = lines[0].split(", ")
            return name, f"driver {driver}"
    except (OSError, ValueError, subprocess.SubprocessError):
        pass  # not installed, or at odds with the kernel's driver: the device files decide
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return (str(devices[0]),) if devices else ()


def describe(device: torch.device, precision: str, attention: str, processes: int = 1) -> str:
    """Return the line that says what this run, of so many processes on this host, computes on, and how."""
    import torch

    way = f"precision {precision}, attention {attention}, {torch.get_num_threads()} threads"
    if device.type != "cuda":
        return f"running on the CPU, no GPU in sight; {way}"
    gpu = torch.cuda.get_device_properties(device)
    count = torch.cuda.device_count()
    facts = [
        f"capability {gpu.major}.{gpu.minor}",
        f"{gpu.total_memory / 2**30:.0f} GB",
        *gpu_of_driver()[1:],
        f"CUDA {torch.version.cuda}",
        *([f"one of {count} GPUs: the others stay idle"] if count > 1 == processes else []),
    ]
    return f"running on {gpu.name} ({', '.join(facts)}); {way}"


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return values as a tensor on the device; the CPU waits for no GPU, since the copy starts from pinned memory."""
    import torch

    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    with COPYING:
        return tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Return the memory that this process can still take on the device, in bytes, at least 1."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(1, int(torch.cuda.mem_get_info(device)[0]) + unused)
    free: list[int] = [psutil.virtual_memory().available]
    for limit, used, statistics in _CONTROL_GROUPS:  # psutil knows the machine's memory, not the container's
        try:
            free.append(int(_read(limit)) - int(_read(used)) + _file_cache(statistics))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(1, min(free))


def _file_cache(statistics: str) -> int:
    """Return the bytes of files that the kernel keeps in the container's memory and gives up when asked."""
    try:
        lines = (line.split() for line in _read(statistics).splitlines())
        found = {name: int(value) for name, value in lines}
    except (OSError, ValueError):
        return 0
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _read(name: str) -> str:
    return Path("/sys/fs/cgroup", name).read_text("utf-8")


def has_network() -> bool:
    """Tell whether any route but that to this machine itself exists (`docker run --network none` has none)."""
    try:
        routes = Path("/proc/net/route").read_text("utf-8").splitlines()[1:]
        ways = {line.split()[0] for line in routes}
        ways |= {line.split()[-1] for line in Path("/proc/net/ipv6_route").read_text("utf-8").splitlines()}
    except OSError:
        return True
    return bool(ways - {"lo"})
