"""The shape of a transformer and of an adapter, as plain values (no torch)."""

from dataclasses import dataclass
from typing import Literal, get_args

RopeScaling = Literal["none", "linear", "llama3", "yarn"]

LinearName = Literal["q", "k", "v", "o", "gate", "up", "down"]

LINEAR_NAMES: tuple[LinearName, ...] = get_args(LinearName)
"""The linear maps of one layer, in the order they are used; an adapter names its targets from these."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding and its published long-context variants.

    `linear` divides positions by `factor` (Chen et al. 2023, arXiv 2306.15595); `llama3` rescales low frequencies
    (Llama 3.1); `yarn` interpolates by wavelength (Peng et al. 2023, arXiv 2309.00071).
    `query_scale_beta` multiplies rotated queries by ``1 + beta ln(1 + floor(position / original_max_positions))``,
    the Llama-4 query temperature that Ministral 3 uses; 0 switches it off.
    """

    theta: float = 10_000.0
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    query_scale_beta: float = 0.0


@dataclass(frozen=True)
class TransformerConfig:
    """Hyperparameters of one decoder-only transformer of the Llama lineage."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_size={self.head_size} must be even: rotary embedding turns pairs")

    def linear_shape(self, name: str) -> tuple[int, int]:
        """Return (input size, output size) of one of `LINEAR_NAMES`."""
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q": (hidden, queries),
            "k": (hidden, keys),
            "v": (hidden, keys),
            "o": (queries, hidden),
            "gate": (hidden, inner),
            "up": (hidden, inner),
            "down": (inner, hidden),
        }[name]


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapter: ``W x + (alpha / rank) B A x`` on the named linear maps (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[LinearName, ...] = LINEAR_NAMES

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in LINEAR_NAMES]
        if unknown or not self.targets:
            raise ValueError(f"adapter targets {self.targets}: choose from {', '.join(LINEAR_NAMES)}")
        if self.rank < 1:
            raise ValueError(f"adapter rank={self.rank} must be at least 1")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
