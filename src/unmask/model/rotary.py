"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with the published long-context variants."""

import math

import torch
from torch import Tensor

from unmask.config import RopeConfig


class Rotary:
    """Cosines and sines of a forward's positions; `apply` turns queries and keys by them.

    Pairs are (i, i + K/2), the convention of the hub's Llama checkpoints.
    """

    def __init__(self, config: RopeConfig, head_size: int, positions: Tensor) -> None:
        frequencies = inverse_frequencies(config, head_size, positions.device)
        angles = positions.float()[:, None, None] * frequencies  # (N, 1, K/2)
        factor = attention_factor(config)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        self.cos, self.sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (N, 1, K)
        self.query_scale: Tensor | None = None
        if config.query_scale_beta:
            period = torch.floor(positions.float() / config.original_max_positions)
            self.query_scale = (1 + config.query_scale_beta * torch.log1p(period))[:, None, None]

    def apply(self, heads: Tensor) -> Tensor:
        """Turn (N, H, K) by each token's position, computing in float32."""
        wide = heads.float()
        first, second = wide.chunk(2, dim=-1)
        return (wide * self.cos + torch.cat([second, first], dim=-1) * self.sin).to(heads.dtype)

    def scale_queries(self, queries: Tensor) -> Tensor:
        """Scale turned (N, H, K) queries by position where the model does (Llama 4, Ministral 3)."""
        return queries if self.query_scale is None else queries * self.query_scale.to(queries.dtype)


def inverse_frequencies(config: RopeConfig, head_size: int, device: torch.device) -> Tensor:
    """Return the angle per position of each pair: (K/2,) float32."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    plain = 1.0 / config.theta**exponent
    if config.scaling == "linear":
        return plain / config.factor
    if config.scaling == "llama3":
        return _llama3(config, plain)
    if config.scaling == "yarn":
        return _yarn(config, plain, head_size)
    return plain


def attention_factor(config: RopeConfig) -> float:
    """Return the factor on cosines and sines by which YaRN sharpens attention (arXiv 2309.00071, eq. 22)."""
    if config.scaling != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    """Divide long wavelengths by the factor, keep short ones, and blend between (Llama 3.1 reference code)."""
    turns = config.original_max_positions * plain / (2 * math.pi)
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blend = blend.clamp(0, 1)
    return plain * blend + plain / config.factor * (1 - blend)


def _yarn(config: RopeConfig, plain: Tensor, head_size: int) -> Tensor:
    """Interpolate pairs that turn less than beta_slow times in the original window, keep those above beta_fast."""

    def pair_of(turns: float) -> float:
        period = config.original_max_positions / (turns * 2 * math.pi)
        return head_size * math.log(period) / (2 * math.log(config.theta))

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    pairs = torch.arange(head_size // 2, dtype=torch.float32, device=plain.device)
    interpolated = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / config.factor * interpolated + plain * (1 - interpolated)
