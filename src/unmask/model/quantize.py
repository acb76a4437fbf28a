"""Dynamic int8 products for CPUs: weights in int8 per output, activations per row when they come.

Products of int8 are exact sums of integers, so a row's result does not depend on the rows beside it, bit for bit.
A compiled kernel computes them, or oneDNN; with VNNI eight rows take little more time than one.
"""

import platform
from typing import Literal, get_args

import torch
from torch import Tensor

from unmask.errors import UsageError
from unmask.model.kernels import kernels
from unmask.model.merged import PACKED_ROWS, Product, in_few_shapes
from unmask.registry import unknown_name

Quantisation = Literal["int8"]
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)

_PEAK = 127  # the largest weight and the largest activation
_ZERO = 128  # oneDNN is fastest with unsigned activations, of which this one means 0


def check_quantisation(name: str, *, device: str, dtype: str) -> None:
    """Raise UsageError for a quantisation nobody knows, or one that this device, dtype or processor cannot do."""
    if name not in QUANTISATIONS:
        raise unknown_name("quantisation", name, QUANTISATIONS)
    if not device.startswith("cpu"):
        raise UsageError(
            f"quantize={name!r} on device {device!r}: int8 products are for CPUs", "leave it out"
        )
    if dtype != "float32":
        raise UsageError(
            f"quantize={name!r} with dtype {dtype!r}: int8 products stand in for those of float32",
            "leave out one of the two",
        )
    if not _is_exact():
        raise UsageError(
            f"quantize={name!r}: torch has no exact int8 products on this processor ({platform.machine()})",
            "they need x86 with VNNI; leave it out",
        )


def int8_product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product with a (out, in) float32 weight, rounded to int8 by output, and a (out,) float32 bias."""
    own = kernels()
    return _onednn_product(weight, bias) if own is None else own.product_int8(weight, bias)


def _onednn_product(weight: Tensor, bias: Tensor | None) -> Product:
    scale = weight.abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / _PEAK
    rounded = (weight / scale[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded, [PACKED_ROWS, weight.shape[1]])
    unit = scale / _PEAK
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    half = torch.tensor(_ZERO + 0.5)  # truncation then rounds

    def multiply(x: Tensor) -> Tensor:
        peak = x.abs().amax(
            -1, keepdim=True
        )  # of a row of zeros it is 0, and so is what it scales in the end
        rows = torch.add(half, x * peak.reciprocal(), alpha=_PEAK).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, _ZERO, packed, unit, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y *= peak
        return y if bias is None else y.add_(bias)

    return in_few_shapes(multiply)


def _is_exact() -> bool:
    """Say whether int8 products are there and do not overflow, which they do on processors without VNNI."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight = torch.full((16, 64), 1.0)
    weight[1::2] = -1.0
    rows = torch.tensor([[1.0], [-1.0]]).expand(2, 64)
    return bool((int8_product(weight, None)(rows) == rows @ weight.T).all())
