"""Measure what `unmask.runtime.tune_allocator` saves: page faults and time of the same tensor program with and without.

    python benchmarks/allocator.py [--repeats 5] [--out benchmarks/allocator.json]

Each run is a process of its own. Workloads: `elementwise` makes and frees 64 MiB buffers, on the main thread and on
another one; `head` is the forward and backward pass of a 576 x 49152 output layer with cross-entropy on 512 tokens,
the largest buffers of training the default model.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unmask.runtime import tune_allocator

STEPS = {"elementwise": 20, "elementwise in a thread": 20, "head": 20}
"""Workload -> steps that are measured, after as many that are not: the heap takes some to find its shape."""


def elementwise() -> Callable[[], None]:
    """Return one step: three operations on 64 MiB of float32."""
    source = torch.ones(16 * 2**20)

    def step() -> None:
        (source + 1).relu() * 2

    return step


def head() -> Callable[[], None]:
    """Return one step: 512 tokens through a large vocabulary's output layer and back."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 576, generator=generator, requires_grad=True)
    weight = torch.randn(49_152, 576, generator=generator) / 24
    targets = torch.randint(49_152, (512,), generator=generator)

    def step() -> None:
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets).backward()

    return step


def measure(workload: str) -> dict[str, float]:
    """Return page faults, kernel time and wall time per step of a warm process, and its peak memory."""
    num_steps = STEPS[workload]
    step = head() if workload == "head" else elementwise()
    for _ in range(num_steps):
        step()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(num_steps):
        step()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "page_faults_per_step": (after.ru_minflt - before.ru_minflt) / num_steps,
        "kernel_s_per_step": (after.ru_stime - before.ru_stime) / num_steps,
        "wall_s_per_step": seconds / num_steps,
        "peak_bytes": after.ru_maxrss * 1024,
    }


def run_child(workload: str, *, tuned: bool) -> None:
    """Measure one workload in this process and print the result as JSON."""
    if tuned:
        state = tune_allocator()
        assert state.keeps_freed_buffers, state
    results = []
    if "thread" in workload:
        thread = threading.Thread(target=lambda: results.append(measure(workload)))
        thread.start()
        thread.join()
    else:
        results.append(measure(workload))
    print(json.dumps(results[0]))


def summary(workload: str, repeats: int, *, tuned: bool) -> dict[str, dict[str, float]]:
    """Return median, least and greatest of each figure over `repeats` processes."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))
    }
    command = [sys.executable, __file__, "--child", workload, *(["--tuned"] if tuned else [])]
    runs = [json.loads(subprocess.check_output(command, env=clean, text=True)) for _ in range(repeats)]
    return {
        figure: {
            "median": statistics.median(run[figure] for run in runs),
            "min": min(run[figure] for run in runs),
            "max": max(run[figure] for run in runs),
        }
        for figure in runs[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, tuned=arguments.tuned)
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "repeats": arguments.repeats,
        "steps": STEPS,
        "results": {
            workload: {
                name: summary(workload, arguments.repeats, tuned=tuned)
                for name, tuned in (("as it comes", False), ("tuned", True))
            }
            for workload in STEPS
        },
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for workload, cases in report["results"].items():
        for name, figures in cases.items():
            faults, wall = figures["page_faults_per_step"]["median"], figures["wall_s_per_step"]["median"]
            print(f"{workload:24} {name:12} {faults:10.0f} faults/step {1000 * wall:8.1f} ms/step")


if __name__ == "__main__":
    main()
