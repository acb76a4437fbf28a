"""What this machine can do: its matrix rate and its memory's bandwidth, measured with torch's own kernels."""

import time
from collections.abc import Callable

import torch

from unmask.benchmark.forward_cost import Machine
from unmask.runtime import processor_name

_SIDES = (1024, 1536, 2048)
"""Of the square matrices whose products are timed: little traffic for much arithmetic, whatever size a kernel likes."""

_STREAM_NUMBERS = 2**26
"""Numbers of the matrix that is read once: 256 MB in float32, more than caches hold."""


def measure_machine(device: torch.device, dtype: torch.dtype, *, repeats: int = 7) -> Machine:
    """Return the best rates seen of a device, with as many threads as torch uses: a roof is what nothing exceeds.

    Arithmetic: square matrix products of several sizes. Memory: a matrix-vector product, which reads every number of
    the matrix once, as the forward of a single token reads the weights.
    """
    generator = torch.Generator().manual_seed(0)
    rates = []
    for side in _SIDES:
        square = torch.randn(side, side, generator=generator).to(device, dtype)
        times = time_calls(lambda square=square: square @ square, device, repeats=repeats)  # type: ignore[misc]
        rates.append(2 * side**3 / min(times))
    rows = torch.ones(_STREAM_NUMBERS // 4096, 4096, device=device, dtype=dtype)
    vector = torch.ones(4096, device=device, dtype=dtype)
    stream_s = min(time_calls(lambda: rows @ vector, device, repeats=repeats))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return Machine(name, max(rates), rows.numel() * rows.element_size() / stream_s)


def time_calls(run: Callable[[], object], device: torch.device, *, repeats: int) -> list[float]:
    """Return the seconds of each of some calls, after one that does not count; a device is waited for."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return [once() for _ in range(repeats)]
