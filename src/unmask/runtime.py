"""What the process asks of its operating system: an allocator that keeps its memory, and no more threads than cores.

glibc hands every large buffer back to the kernel when it is freed, so that the next one is made of pages that must be
zeroed and mapped again. A tensor program frees and allocates buffers of the same sizes all the time: most of a training
step on a CPU went into page faults until this was switched off (`benchmarks/allocator.py` measures it).
"""

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -3, -4, -8  # malloc.h
_GLIBC_VARIABLES = (
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
_NEVER_BYTES = 2**31 - 1  # the largest value mallopt takes
_TOP_PAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class AllocatorState:
    """Which memory allocator serves the process, and whether it keeps freed buffers for the next tensor."""

    name: str
    keeps_freed_buffers: bool
    reason: str


@cache
def tune_allocator() -> AllocatorState:
    """Make glibc's allocator keep freed buffers; do nothing elsewhere, and only once.

    Blocks up to 2 GiB come from the heap and not from a mapping of their own, the heap's end is not given back, it
    grows in larger steps, and all threads share it: a thread's own arena maps everything over 64 MiB whatever the
    threshold. Settings made from outside, by glibc's own variables, another preloaded allocator or
    ``UNMASK_TUNE_ALLOCATOR=0``, are respected.
    """
    name = allocator_name()
    if os.environ.get("UNMASK_TUNE_ALLOCATOR") == "0":
        return AllocatorState(name, False, "switched off by UNMASK_TUNE_ALLOCATOR=0")
    if not name.startswith("glibc"):
        return AllocatorState(name, False, "only glibc's allocator needs and takes these settings")
    chosen = [variable for variable in _GLIBC_VARIABLES if variable in os.environ]
    if chosen or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return AllocatorState(name, True, f"left as set by {', '.join(chosen) or 'GLIBC_TUNABLES'}")
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int

    def accepts(parameter: int, value: int) -> bool:
        return bool(mallopt(parameter, value) == 1)

    # glibc before 2.35 refuses a threshold over 32 MiB but can be told never to map a block.
    large_blocks = accepts(_M_MMAP_THRESHOLD, _NEVER_BYTES) or accepts(_M_MMAP_MAX, 0)
    rest = (_M_TRIM_THRESHOLD, _NEVER_BYTES), (_M_TOP_PAD, _TOP_PAD_BYTES), (_M_ARENA_MAX, 1)
    if large_blocks and all(accepts(parameter, value) for parameter, value in rest):
        return AllocatorState(name, True, "mallopt accepted the settings")
    return AllocatorState(name, False, "mallopt refused the settings")


def allocator_name() -> str:
    """Name the allocator that serves this process: a preloaded one, glibc with its version, or the system's."""
    preloaded = [Path(entry).name for entry in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    for name in preloaded:
        if "malloc" in name:
            return name
    library, version = platform.libc_ver()
    return f"{library} {version}" if library == "glibc" else f"the system's ({sys.platform})"


def processor_name() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> float:
    """Return how many cores this process may keep busy: its CPU affinity, capped by the container's quota."""
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    quota = _container_quota()
    return cores if quota is None else min(cores, quota)


def _container_quota() -> float | None:
    """Return the CPU quota of the control group in cores (cgroup v2, then v1), or None without one."""
    group = Path("/sys/fs/cgroup")
    try:
        fields = (group / "cpu.max").read_text().split()
    except OSError:
        try:
            fields = [(group / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return None
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None  # "max", or -1: no quota
    return int(fields[0]) / int(fields[1])


def usable_memory() -> int:
    """Return the bytes of memory that this process can have at most: the machine's, capped by the container's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    for file in (group / "memory.max", group / "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            limit = file.read_text().strip()
        except OSError:
            continue
        return min(machine, int(limit)) if limit.isdigit() else machine  # "max": no limit
    return machine


def thread_count() -> int | None:
    """Return the number of threads torch should use, or None where its own choice stands.

    torch counts the machine's cores and not the container's quota, and threads beyond the quota stop each other.
    ``OMP_NUM_THREADS`` is the user's word and is left alone.
    """
    cores = usable_cores()
    if "OMP_NUM_THREADS" in os.environ or cores >= (os.cpu_count() or 1):
        return None
    return max(1, int(cores))
