"""The ways torch can compute attention, each tried on a device and compared with the definition."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_NUM_HEADS, _NUM_KV_HEADS, _LENGTH, _HEAD_SIZE = 4, 2, 64, 64
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

_Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionPath:
    """One way to compute attention in one number format on one device, and whether it gave the right numbers."""

    device: str
    dtype: str
    path: str
    works: bool
    detail: str


def probe_attention(device: torch.device) -> list[AttentionPath]:
    """Try every path on one device: those the transformer uses (grouped queries), then torch's kernels one by one."""
    kernels = {
        "flash kernel": SDPBackend.FLASH_ATTENTION,
        "memory-efficient kernel": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN kernel": SDPBackend.CUDNN_ATTENTION,
        "plain kernel": SDPBackend.MATH,
    }
    if device.type != "cuda":
        del kernels["memory-efficient kernel"], kernels["cuDNN kernel"]
    paths: dict[str, _Attend] = {
        "causal": _scaled_dot_product(causal=True, kernel=None),
        "masked": _scaled_dot_product(causal=False, kernel=None),
        **{name: _scaled_dot_product(causal=True, kernel=kernel) for name, kernel in kernels.items()},
    }
    return [_try(device, dtype, name, attend) for dtype in _TOLERANCES for name, attend in paths.items()]


def _scaled_dot_product(*, causal: bool, kernel: SDPBackend | None) -> _Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if kernel is not None:  # not every kernel knows grouped queries
            k, v = _repeat_heads(k), _repeat_heads(v)
        with nullcontext() if kernel is None else sdpa_kernel([kernel]):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if causal else mask, is_causal=causal, enable_gqa=kernel is None
            )

    return attend


def _repeat_heads(x: Tensor) -> Tensor:
    return x.repeat_interleave(_NUM_HEADS // _NUM_KV_HEADS, dim=1)


def _try(device: torch.device, dtype: torch.dtype, name: str, attend: _Attend) -> AttentionPath:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, _LENGTH, _HEAD_SIZE, generator=generator).to(device, dtype)
        for heads in (_NUM_HEADS, _NUM_KV_HEADS, _NUM_KV_HEADS)
    )
    mask = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()
    label = str(dtype).removeprefix("torch.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains at length why a kernel is not available
            output = attend(q, k, v, mask.to(device)).double().cpu()
    except (RuntimeError, NotImplementedError) as error:
        return AttentionPath(str(device), label, name, False, str(error).splitlines()[0])
    q, k, v = (x.double().cpu() for x in (q, k, v))
    scores = (q @ _repeat_heads(k).transpose(-1, -2) / _HEAD_SIZE**0.5).masked_fill(~mask, -torch.inf)
    worst = float((output - scores.softmax(-1) @ _repeat_heads(v)).abs().max())
    return AttentionPath(str(device), label, name, worst <= _TOLERANCES[dtype], f"largest error {worst:.1g}")
