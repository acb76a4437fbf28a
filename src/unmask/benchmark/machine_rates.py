"""What this machine can do: its matrix rate and its memory's bandwidth, measured with torch's own kernels."""

import time
from collections.abc import Callable
from statistics import median

import torch

from unmask.benchmark.forward_cost import Machine
from unmask.runtime import processor_name

_SIDE = 1536
"""Of the square matrices whose product is timed: 28 MB of float32 in all, little traffic for much arithmetic."""

_STREAM_NUMBERS = 2**26
"""Numbers of the matrix that is read once: 256 MB in float32, more than caches hold."""


def measure_machine(device: torch.device, dtype: torch.dtype, *, repeats: int = 7) -> Machine:
    """Return the median rates of a device, with as many threads as torch uses.

    Arithmetic: a square matrix product. Memory: a matrix-vector product, which reads every number of the matrix once,
    as the forward of a single token reads the weights.
    """
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(_SIDE, _SIDE, generator=generator).to(device, dtype)
    seconds = time_median(lambda: square @ square, device, repeats=repeats)
    rows = torch.ones(_STREAM_NUMBERS // 4096, 4096, device=device, dtype=dtype)
    vector = torch.ones(4096, device=device, dtype=dtype)
    stream_s = time_median(lambda: rows @ vector, device, repeats=repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return Machine(name, 2 * _SIDE**3 / seconds, rows.numel() * rows.element_size() / stream_s)


def time_median(run: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Return the median seconds of a call, after one that does not count; a device is waited for."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return median(once() for _ in range(repeats))
