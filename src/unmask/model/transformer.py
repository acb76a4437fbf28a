"""One decoder-only transformer for the Llama lineage: packed tokens in, hidden states out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.config import TransformerConfig
from unmask.layout import Layout
from unmask.model.adapter import Adapter, LayerDelta
from unmask.model.attention import AttentionPlan
from unmask.model.cache import Cache
from unmask.model.plan import Plan
from unmask.model.rotary import Rotary


class RMSNorm(nn.Module):
    """Scale to unit root mean square, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale (..., D) to unit root mean square, computed in float32, and then by (D,) weights."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, optional biases and optional query/key norms."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        self.q = _linear(config, "q", bias=config.qkv_bias)
        self.k = _linear(config, "k", bias=config.qkv_bias)
        self.v = _linear(config, "v", bias=config.qkv_bias)
        self.o = _linear(config, "o", bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, rotary: Rotary, plan: Plan, delta: LayerDelta | None) -> Tensor:
        """(N, D) -> (N, D)."""
        queries, keys, values = (
            _project(linear, x, delta, name).view(len(x), -1, self.head_size)
            for name, linear in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotary.scale_queries(rotary.apply(queries)), rotary.apply(keys)
        attended = plan.attend(self.layer, queries, keys, values)
        return _project(self.o, attended.flatten(1), delta, "o")


class MLP(nn.Module):
    """SiLU-gated feed-forward (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = _linear(config, "gate", bias=config.mlp_bias)
        self.up = _linear(config, "up", bias=config.mlp_bias)
        self.down = _linear(config, "down", bias=config.mlp_bias)

    def forward(self, x: Tensor, delta: LayerDelta | None) -> Tensor:
        """(N, D) -> (N, D)."""
        inner = F.silu(_project(self.gate, x, delta, "gate")) * _project(self.up, x, delta, "up")
        return _project(self.down, inner, delta, "down")


class Layer(nn.Module):
    """Pre-norm residual layer: attention, then MLP."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, index)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary, plan: Plan, delta: LayerDelta | None) -> Tensor:
        """(N, D) -> (N, D)."""
        x = x + self.attention(self.attention_norm(x), rotary, plan, delta)
        y: Tensor = self.mlp(self.mlp_norm(x), delta)
        return x + y


class Transformer(nn.Module):
    """The backbone: it knows layouts and caches, and nothing of noise, masks, sampling or pages.

    In training `recomputes` keeps only the layers' inputs for the way back, and runs each layer once more there, and
    `uses_flex` takes one FlexAttention kernel for forwards without a cache, on CUDA.
    `exact_rows`: whether a token's state in a causal root of up to 64, bit for bit, does not depend on the tokens that
    run beside it. `exact`: whether no token's does, whatever it sees.
    """

    exact = exact_rows = False
    recomputes = False
    uses_flex = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def head_weight(self) -> Tensor:
        """The (V, D) output matrix: the head's own, or the embeddings where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(N,) token ids -> (N, D)."""
        return F.embedding(tokens, self.embed.weight)

    def forward(
        self, inputs: Tensor, layout: Layout, cache: Cache | None = None, adapter: Adapter | None = None
    ) -> Tensor:
        """Run N packed tokens and return their hidden states after the final norm: (N, D).

        `inputs`: token ids (N,) int64, or embeddings (N, D). `adapter` acts on the tokens of adapter segments only.
        Keys and values of `store` segments are written to `cache`; all else leaves it as it was.
        """
        x = inputs if inputs.is_floating_point() else self.embed_tokens(inputs)
        if x.shape[0] != layout.num_tokens:
            raise ValueError(f"{x.shape[0]} tokens were given for a layout of {layout.num_tokens}")
        rotary = Rotary(
            self.config.rope, self.config.head_size, torch.from_numpy(layout.positions).to(self.device)
        )
        plan = self._plan(layout, cache)
        deltas = None if adapter is None else adapter.deltas(layout)
        recomputes = self.recomputes and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            arguments = (x, rotary, plan, None if deltas is None else deltas[index])
            x = checkpoint(layer, *arguments, use_reentrant=False) if recomputes else layer(*arguments)
        plan.finish()
        return self.norm(x)  # type: ignore[no-any-return]

    def _plan(self, layout: Layout, cache: Cache | None) -> Plan:
        if self.uses_flex and cache is None:
            from unmask.model.flex import FlexPlan

            return FlexPlan(layout, self.device)
        if cache is not None and (own := cache.plan(layout)) is not None:
            return own
        return AttentionPlan(layout, cache, self.device, single_queries=self.exact_rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states -> (M, V) logits in float32."""
        return F.linear(hidden, self.head_weight).float()


def _linear(config: TransformerConfig, name: str, *, bias: bool) -> nn.Linear:
    return nn.Linear(*config.linear_shape(name), bias=bias)


def _project(linear: nn.Linear, x: Tensor, delta: LayerDelta | None, name: str) -> Tensor:
    """Apply a linear map, and the adapter's share of it to the rows that want it: (N, in) -> (N, out)."""
    y: Tensor = linear(x)
    return y if delta is None else delta.add(name, x, y)
