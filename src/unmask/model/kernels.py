"""Compiled kernels on float32 tensors in main memory: each row's result is the same bits whatever runs beside it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.model.native import native
from unmask.model.rotary import Rotary

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_ARGUMENTS = {
    "panel": (),
    "product_float": (_POINTER, _LONG, *[_POINTER] * 3, _LONG, _INT, *[_LONG] * 3, _INT),
    "product_bytes": (*[_POINTER] * 6, *[_LONG] * 3, _INT),
    "rms_norm": (*[_POINTER] * 3, _LONG, _LONG, _FLOAT),
    "gated": (_POINTER, _POINTER, _LONG, _LONG),
    "turn": (*[_POINTER] * 3, *[_LONG] * 4),
    "attend": (*[_POINTER] * 9, *[_LONG] * 5, _INT),
}
_BYTE_PEAK, _BYTE_ZERO = 127, 128
_SHARED_WORK = 1 << 20
"""Multiplications of a product from which on it is shared out between threads; waking them costs microseconds."""


class CachePlace(ctypes.Structure):
    """Where cached keys and values lie: `struct cache` of kernels.c."""

    _fields_ = (
        ("pages", _POINTER),
        ("most_pages", _LONG),
        ("page_size", _LONG),
        ("page_stride", _LONG),
        ("position_stride", _LONG),
        ("head_stride", _LONG),
    )


@dataclass(frozen=True)
class CachedLayer:
    """One layer's stored keys and values, which lie as `place` says."""

    keys: Tensor
    values: Tensor
    place: CachePlace

    @property
    def addresses(self) -> tuple[int, int, int]:
        return self.keys.data_ptr(), self.values.data_ptr(), ctypes.addressof(self.place)


class Kernels:
    """The functions of a compiled library. Tensors are float32 in main memory, and need no gradient."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        library.panel.restype = _LONG
        self._panel: int = library.panel()

    def product(self, weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the product of rows (N, in) with a (out, in) weight, plus a (out,) bias."""
        outer, run = len(weight), self._run_product(weight, bias)

        def multiply(x: Tensor) -> Tensor:
            y = x.new_empty(x.shape[0], outer)
            run(x, y, 0)
            return y

        return multiply

    def adder(self, weight: Tensor) -> Callable[[Tensor, Tensor], object]:
        """Return a function that adds the product of rows (N, in) with a (out, in) weight to rows (N, out)."""
        run = self._run_product(weight, None)
        return lambda x, y: run(x, y, 1)

    def _run_product(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, Tensor, int], None]:
        outer, inner = weight.shape
        packed = self._by_panel(weight).transpose(1, 2).contiguous()
        function, where, added = self._library.product_float, packed.data_ptr(), _address(bias)

        def run(x: Tensor, y: Tensor, adds: int, *, _kept: object = (packed, bias)) -> None:
            rows = _num_rows(x, inner)
            if x.stride(1) != 1:
                x = x.contiguous()
            function(
                *(x.data_ptr(), x.stride(0), where, added, y.data_ptr(), y.stride(0), adds),
                *(rows, inner, outer, _num_threads(rows * inner * outer)),
            )

        return run

    def product_int8(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return `product` with the weight rounded to int8 by output, and each row when it comes; sums are exact."""
        outer, inner = weight.shape
        scale = weight.abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / _BYTE_PEAK
        rounded = F.pad((weight / scale[:, None]).round().to(torch.int8), (0, -inner % 4))
        packed = self._by_panel(rounded)
        packed = packed.view(*packed.shape[:2], -1, 4).transpose(1, 2).contiguous()
        unit = self._by_panel(scale[:, None] / _BYTE_PEAK).flatten()
        zero = self._by_panel(rounded.sum(1, dtype=torch.int32)[:, None] * _BYTE_ZERO).flatten()
        function = self._library.product_bytes
        places = packed.data_ptr(), unit.data_ptr(), zero.data_ptr(), _address(bias)

        def multiply(x: Tensor, *, _kept: object = (packed, unit, zero, bias)) -> Tensor:
            x, rows = x.contiguous(), _num_rows(x, inner)
            y = x.new_empty(rows, outer)
            threads = _num_threads(rows * inner * outer)
            function(x.data_ptr(), *places, y.data_ptr(), rows, inner, outer, threads)
            return y

        return multiply

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Scale (..., D) to unit root mean square, and then by (D,) weights."""
        x = x.contiguous()
        y, size = torch.empty_like(x), weight.shape[0]
        self._library.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // size, size, eps)
        return y

    def gated(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of (N, 2 D) that hold both: (N, D)."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, size)
        self._library.gated(gate_up.data_ptr(), y.data_ptr(), rows, size)
        return y

    def turn(self, heads: Tensor, count: int, rotary: Rotary) -> Tensor:
        """Turn the first `count` heads of (N, H, K) by their tokens' positions, in place, and return them."""
        rows, total, size = heads.shape
        places = heads.data_ptr(), rotary.cos.data_ptr(), rotary.sin.data_ptr()
        self._library.turn(*places, rows, total * size, count, size)
        return heads[:, :count]

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, facts: Tensor, cached: CachedLayer | None
    ) -> Tensor:
        """Return softmax(q k / sqrt K) v: (N, H, K) and twice (N, kv heads, K) -> (N, H, K).

        `facts` (N, 3 + 2 S) int64: of each token the cache row, how many of its positions it sees, the position where
        it is stored or -1, and begin and end of S runs of packed tokens that it sees. `cached` may be None where no
        token sees or stores any.
        """
        tokens, heads, size = queries.shape
        y = queries.new_empty(tokens, heads, size)
        packed = [
            each if each.stride()[1:] == (size, 1) else each.contiguous() for each in (queries, keys, values)
        ]
        strides = (ctypes.c_int64 * 3)(*(each.stride(0) for each in packed))
        self._library.attend(
            *(each.data_ptr() for each in packed),
            ctypes.addressof(strides),
            y.data_ptr(),
            *((None, None, None) if cached is None else cached.addresses),
            *(facts.data_ptr(), tokens, (facts.shape[1] - 3) // 2, heads, keys.shape[1], size),
            torch.get_num_threads(),
        )
        return y

    def _by_panel(self, weight: Tensor) -> Tensor:
        """Return (out, n) with rows of zeros up to a whole panel: (panels, panel, n)."""
        padded = F.pad(weight, (0, 0, 0, -len(weight) % self._panel)).contiguous()
        return padded.view(-1, self._panel, weight.shape[1])


@cache
def kernels() -> Kernels | None:
    """Return the compiled kernels where they are there and give what torch gives; otherwise None."""
    library = native().library
    if library is None:
        return None
    found = Kernels(library)
    return found if _is_right(found) else None


@torch.inference_mode()
def _is_right(found: Kernels) -> bool:
    """Say whether products are close to torch's, those of int8 exact, and rows independent of their number."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, 70, generator=generator) for size in (50, 21))
    y = found.product(weight, None)(x)
    integers = torch.randint(-127, 128, (50, 70), generator=generator).float()
    integers[:, 0] = 127.0
    rows = found.product_int8(integers, None)(integers[:21])
    return (
        torch.allclose(y, x @ weight.T, atol=1e-4)
        and torch.equal(y, torch.cat([found.product(weight, None)(row[None]) for row in x]))
        and torch.allclose(rows, integers[:21] @ integers.T, rtol=1e-6)
    )


def _num_rows(x: Tensor, size: int) -> int:
    """Return how many rows there are; ValueError for what the kernels, which trust what they are told, cannot read."""
    if x.shape[1:] != (size,) or x.dtype != torch.float32:
        raise ValueError(f"a product of rows of {size} float32 numbers was given {tuple(x.shape)}, {x.dtype}")
    return x.shape[0]


def _num_threads(multiplications: int) -> int:
    return torch.get_num_threads() if multiplications >= _SHARED_WORK else 1


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
