"""The allocator and thread settings: accepted where they apply, effective, and never against the user's word."""

import json
import os
import platform
import subprocess
import sys

import pytest

from unmask import runtime

GLIBC = platform.libc_ver()[0] == "glibc" and "LD_PRELOAD" not in os.environ


def in_process(code: str, **variables: str) -> dict[str, object]:
    """Run `code` in a fresh interpreter with no allocator variables but `variables`; return the JSON it prints."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "UNMASK_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True, check=True
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


STATE = """
import dataclasses, json
from unmask.runtime import tune_allocator
print(json.dumps(dataclasses.asdict(tune_allocator())))
"""

FAULTS = """
import ctypes, json, resource
from unmask.runtime import tune_allocator
if {tuned}:
    tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)
def cycle():
    buffer = libc.malloc(64 * 2**20)
    ctypes.memset(buffer, 1, 64 * 2**20)
    libc.free(buffer)
cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    cycle()
print(json.dumps({{"faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}}))
"""


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_glibc_accepts_the_settings() -> None:
    state = in_process(STATE)
    assert state["keeps_freed_buffers"] is True
    assert state["reason"] == "mallopt accepted the settings"


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_freed_buffers_are_not_mapped_again() -> None:
    pages = 8 * 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    plain = in_process(FAULTS.format(tuned=False))["faults"]
    tuned = in_process(FAULTS.format(tuned=True))["faults"]
    assert isinstance(plain, int)
    assert isinstance(tuned, int)
    assert tuned < 0.02 * pages
    assert plain > 10 * tuned


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"UNMASK_TUNE_ALLOCATOR": "0"}, "UNMASK_TUNE_ALLOCATOR"),
        ({"MALLOC_TRIM_THRESHOLD_": "1000"}, "MALLOC_TRIM_THRESHOLD_"),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000"}, "GLIBC_TUNABLES"),
    ],
)
def test_settings_from_outside_are_respected(variables: dict[str, str], word: str) -> None:
    if not GLIBC and "UNMASK" not in word:
        pytest.skip("glibc only")
    assert word in str(in_process(STATE, **variables)["reason"])


def test_usable_cores_follows_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < runtime.usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(runtime, "_container_quota", lambda: 0.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runtime.usable_cores() == 0.5
    assert runtime.thread_count() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert runtime.thread_count() is None


def test_memory_is_the_machines_or_the_containers() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < runtime.usable_memory() <= machine
