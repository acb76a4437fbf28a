"""A frozen transformer laid out for inference: fewer and larger products, on weights packed for the processor.

Queries, keys and values come out of one product, gate and up out of another, and the adapter's updates are merged in
the same way. The values are those of the plain transformer up to the rounding of sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config import LinearName, TransformerConfig
from unmask.layout import Layout
from unmask.model.adapter import Adapter, LayerDelta, LowRank
from unmask.model.attention import AttentionPlan
from unmask.model.rotary import Rotary
from unmask.model.transformer import Layer, Transformer, rms_norm

MERGED: Mapping[str, tuple[LinearName, ...]] = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
"""The products of a merged layer, and the linear maps that each is made of."""

PACKED_ROWS = 16
"""How many rows packed weights are laid out for: a draft, or a small batch of steps; any number is right."""

_FEWEST_ROWS = 4
"""oneDNN takes a sixth longer for the products of one float32 row than for those of four."""

_STEPS = 16
"""Into so many parts goes each power of two, and products run with whole numbers of parts."""

Product = Callable[[Tensor], Tensor]
"""A linear map on rows: (N, in) -> (N, out)."""

MakeProduct = Callable[[Tensor, Tensor | None], Product]
"""Builds a product from its (out, in) weight and (out,) bias."""


class MergedLayer(nn.Module):
    """A layer of four products."""

    def __init__(self, layer: Layer, make: MakeProduct) -> None:
        super().__init__()
        attention = layer.attention
        self.index, self.head_size = attention.layer, attention.head_size
        self.num_kv_heads = attention.k.out_features // attention.head_size
        self.norms, self.eps = (layer.attention_norm.weight, layer.mlp_norm.weight), layer.attention_norm.eps
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        linears = {**dict(attention.named_children()), **dict(layer.mlp.named_children())}
        self._products = {
            merged: _merge([linears[name] for name in names], make)  # type: ignore[misc]
            for merged, names in MERGED.items()
        }

    def forward(self, x: Tensor, rotary: Rotary, plan: AttentionPlan, delta: LayerDelta | None) -> Tensor:
        """(N, D) -> (N, D)."""
        before_attention, before_mlp = self.norms
        heads = self._project("qkv", rms_norm(x, before_attention, self.eps), delta)
        heads = heads.view(len(x), -1, self.head_size)
        num_turned = heads.shape[1] - self.num_kv_heads
        num_queries = num_turned - self.num_kv_heads
        turned, values = heads[:, :num_turned], heads[:, num_turned:]
        if self.q_norm is not None and self.k_norm is not None:
            normed = [self.q_norm(turned[:, :num_queries]), self.k_norm(turned[:, num_queries:])]
            turned = torch.cat(normed, dim=1)
        turned = rotary.apply(turned)
        queries = rotary.scale_queries(turned[:, :num_queries])
        attended = plan.attend(self.index, queries, turned[:, num_queries:], values)
        x = x + self._project("o", attended.flatten(1), delta)
        gate, up = self._project("gate_up", rms_norm(x, before_mlp, self.eps), delta).chunk(2, dim=-1)
        return x + self._project("down", F.silu(gate) * up, delta)

    def _project(self, name: str, x: Tensor, delta: LayerDelta | None) -> Tensor:
        y = self._products[name](x)
        return y if delta is None else delta.add(name, x, y)


class MergedTransformer(Transformer):
    """A transformer of merged layers, which shares embeddings and norms with the one it was made from."""

    def __init__(self, source: Transformer, make: MakeProduct, *, exact_rows: bool) -> None:
        nn.Module.__init__(self)  # without the parameters of a plain one
        self.exact_rows = exact_rows
        self.config, self.embed, self.norm, self.head = source.config, source.embed, source.norm, source.head
        self.layers = nn.ModuleList(MergedLayer(layer, make) for layer in source.layers)  # type: ignore[arg-type]
        self._output = make(source.head_weight, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states -> (M, V) logits in float32."""
        return self._output(hidden).float()


@dataclass(frozen=True)
class MergedUpdate:
    """The updates of the linear maps in one product.

    `down`: those of all maps side by side, (in, ranks). `ups`: of each map that has an update, its columns of `down`,
    its columns of the product's result, and its scaled up, (rank, out).
    """

    down: Tensor
    ups: tuple[tuple[slice, slice, Tensor], ...]

    def add_(self, x: Tensor, y: Tensor) -> None:
        """Add the updates of rows `x` (n, in) to their results `y` (n, out), in place."""
        inner = x.mm(self.down)
        for ranks, outputs, up in self.ups:
            y[:, outputs].addmm_(inner[:, ranks], up)


@dataclass(frozen=True)
class MergedDelta(LayerDelta):
    """One layer's low-rank updates, merged like its products."""

    updates: Mapping[str, MergedUpdate] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add the update of a product on `x` (N, in) to the adapter's rows of its result `y` (N, out), in place."""
        if name in self.updates:
            changed = y[self.rows]
            self.updates[name].add_(x[self.rows], changed)
            if not isinstance(self.rows, slice):  # then it was a copy
                y[self.rows] = changed
        return y


class MergedAdapter(Adapter):
    """An adapter that does on merged layers what the one it was made from does on plain ones."""

    def __init__(self, source: Adapter, config: TransformerConfig, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # without the parameters of a plain one
        self.config, self.mask_embedding, self.layers = source.config, source.mask_embedding, source.layers
        self._updates = [_merge_low_rank(layer, config, dtype) for layer in source.layers]  # type: ignore[arg-type]

    def deltas(self, layout: Layout) -> list[LayerDelta] | None:
        """Return each layer's updates for the adapter tokens of a layout, or `None` when it has none."""
        plain = super().deltas(layout)
        if plain is None:
            return None
        pairs = zip(plain, self._updates, strict=True)
        return [MergedDelta(delta.layer, delta.rows, delta.num_tokens, updates) for delta, updates in pairs]


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the fastest product of this number format: oneDNN's on packed weights for float32 on CPUs, else torch's.

    On packed weights the rows of a draft cost hardly more than one; torch's own kernel takes longer with every row.
    """
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)

    def multiply(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    return in_few_shapes(multiply, fewest=_FEWEST_ROWS)


def in_few_shapes(multiply: Product, *, fewest: int = 0) -> Product:
    """Return the product with rows of zeros added: up to the fewest, and an eighth more of many at most.

    For each weight's shape and number of rows that it has ever seen oneDNN keeps about a megabyte.
    """

    def padded(x: Tensor) -> Tensor:
        num_rows = len(x)
        beyond = -num_rows % max(1, 2 ** (num_rows - 1).bit_length() // _STEPS)
        missing = max(beyond, fewest - num_rows)
        return multiply(F.pad(x, (0, 0, 0, missing)))[:num_rows] if missing else multiply(x)

    return padded


def merge(
    transformer: Transformer,
    adapter: Adapter | None,
    make: MakeProduct = product,
    *,
    exact_rows: bool = False,
) -> tuple[MergedTransformer, MergedAdapter | None]:
    """Return a frozen transformer and its adapter laid out for inference; both keep what they were made from alive.

    `exact_rows`: the products of `make` do not depend on the rows beside a row, and nor shall attention.
    """
    with torch.inference_mode():
        merged = MergedTransformer(transformer, make, exact_rows=exact_rows).requires_grad_(False).eval()
        return merged, None if adapter is None else MergedAdapter(
            adapter, transformer.config, transformer.dtype
        )


def _merge(linears: Sequence[nn.Linear], make: MakeProduct) -> Product:
    """Return one product with the outputs of several linear maps of the same input, one after the other."""
    if len(linears) == 1:
        return make(linears[0].weight, linears[0].bias)
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return make(torch.cat(weights), torch.cat(biases) if biases else None)


def _merge_low_rank(
    layer: Mapping[str, LowRank], config: TransformerConfig, dtype: torch.dtype
) -> dict[str, MergedUpdate]:
    """Return the updates of one layer for each merged product that has any."""
    merged = {}
    for whole, names in MERGED.items():
        downs: list[Tensor] = []
        ups: list[tuple[slice, slice, Tensor]] = []
        rank = output = 0
        for name in names:
            size = config.linear_shape(name)[1]
            if name in layer:
                part = layer[name]
                ranks = slice(rank, rank + len(part.down))
                up = (part.scale * part.up).t().to(dtype).contiguous()
                downs.append(part.down)
                ups.append((ranks, slice(output, output + size), up))
                rank = ranks.stop
            output += size
        if downs:
            merged[whole] = MergedUpdate(torch.cat(downs).t().to(dtype).contiguous(), tuple(ups))
    return merged
