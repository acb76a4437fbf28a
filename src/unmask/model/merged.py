"""A frozen transformer laid out for inference: fewer and larger products, on weights packed for the processor.

Queries, keys and values come out of one product, gate and up out of another, and the adapter's updates are merged in
the same way. The values are those of the plain transformer up to the rounding of sums. In float32 on a CPU all of it
runs on compiled kernels where they are there (`unmask.model.kernels`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config import LinearName, TransformerConfig
from unmask.layout import Layout
from unmask.model.adapter import Adapter, LayerDelta, LowRank
from unmask.model.cache import Cache
from unmask.model.kernels import Kernels, kernels
from unmask.model.native_plan import NativePlan
from unmask.model.plan import Plan
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


Adder = Callable[[Tensor, Tensor], object]
"""A linear map on rows (N, in) whose results are added to rows (N, out)."""


class RowOperations(Protocol):
    """What a layer does between its products: `Kernels`, or torch's operations."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Scale (..., D) to unit root mean square, and then by (D,) weights."""
        ...

    def gated(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up of (N, 2 D) that hold both: (N, D)."""
        ...

    def turn(self, heads: Tensor, count: int, rotary: Rotary) -> Tensor:
        """Return the first `count` heads of (N, H, K), turned by their tokens' positions; perhaps in place."""
        ...

    def adder(self, weight: Tensor) -> Adder:
        """Return a function that adds the product with a (out, in) weight."""
        ...


class TorchOperations:
    """torch's operations between products."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def gated(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def turn(self, heads: Tensor, count: int, rotary: Rotary) -> Tensor:
        return rotary.apply(heads[:, :count])

    def adder(self, weight: Tensor) -> Adder:
        turned = weight.t().contiguous()
        return lambda x, y: y.addmm_(x, turned)


class MergedLayer(nn.Module):
    """A layer of four products."""

    def __init__(self, layer: Layer, make: MakeProduct, operations: RowOperations) -> None:
        super().__init__()
        self._operations = operations
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

    def forward(self, x: Tensor, rotary: Rotary, plan: Plan, delta: LayerDelta | None) -> Tensor:
        """(N, D) -> (N, D)."""
        operations = self._operations
        before_attention, before_mlp = self.norms
        heads = self._project("qkv", operations.rms_norm(x, before_attention, self.eps), delta)
        heads = heads.view(x.shape[0], -1, self.head_size)
        num_turned = heads.shape[1] - self.num_kv_heads
        num_queries = num_turned - self.num_kv_heads
        values = heads[:, num_turned:]
        if self.q_norm is not None and self.k_norm is not None:
            parts = (heads[:, :num_queries], self.q_norm), (heads[:, num_queries:num_turned], self.k_norm)
            normed = [operations.rms_norm(part, norm.weight, norm.eps) for part, norm in parts]
            heads = torch.cat(normed, dim=1)
        turned = operations.turn(heads, num_turned, rotary)
        queries = rotary.scale_queries(turned[:, :num_queries])
        attended = plan.attend(self.index, queries, turned[:, num_queries:], values)
        x = x + self._project("o", attended.flatten(1), delta)
        gate_up = self._project("gate_up", operations.rms_norm(x, before_mlp, self.eps), delta)
        return x + self._project("down", operations.gated(gate_up), delta)

    def _project(self, name: str, x: Tensor, delta: LayerDelta | None) -> Tensor:
        y = self._products[name](x)
        return y if delta is None else delta.add(name, x, y)


class MergedTransformer(Transformer):
    """A transformer of merged layers, which shares embeddings and norms with the one it was made from."""

    def __init__(
        self, source: Transformer, make: MakeProduct, own: Kernels | None, *, exact_rows: bool
    ) -> None:
        nn.Module.__init__(self)  # without the parameters of a plain one
        self._kernels, self.exact, self.exact_rows = own, own is not None, exact_rows or own is not None
        self.config, self.embed, self.norm, self.head = source.config, source.embed, source.norm, source.head
        operations = own or TorchOperations()
        self.layers = nn.ModuleList(MergedLayer(layer, make, operations) for layer in source.layers)  # type: ignore[arg-type]
        self._output = make(source.head_weight, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states -> (M, V) logits in float32."""
        return self._output(hidden).float()

    def _plan(self, layout: Layout, cache: Cache | None) -> Plan:
        return (
            super()._plan(layout, cache)
            if self._kernels is None
            else NativePlan(self._kernels, layout, cache)
        )


@dataclass(frozen=True)
class MergedUpdate:
    """The updates of the linear maps in one product.

    `down`: the downs of all maps side by side. `ups`: of each map that has an update, its columns of what `down` gives,
    its columns of the product's result, and its scaled up.
    """

    down: Product
    ups: tuple[tuple[slice, slice, Adder], ...]

    def add_(self, x: Tensor, y: Tensor) -> None:
        """Add the updates of rows `x` (n, in) to their results `y` (n, out), in place."""
        inner = self.down(x)
        for ranks, outputs, up in self.ups:
            up(inner[:, ranks], y[:, outputs])


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

    def __init__(
        self, source: Adapter, config: TransformerConfig, dtype: torch.dtype, own: Kernels | None
    ) -> None:
        nn.Module.__init__(self)  # without the parameters of a plain one
        self.config, self.mask_embedding, self.layers = source.config, source.mask_embedding, source.layers
        adder = (own or TorchOperations()).adder
        self._updates = [_merge_low_rank(layer, config, dtype, adder) for layer in source.layers]  # type: ignore[arg-type]

    def deltas(self, layout: Layout) -> list[LayerDelta] | None:
        """Return each layer's updates for the adapter tokens of a layout, or `None` when it has none."""
        plain = super().deltas(layout)
        if plain is None:
            return None
        pairs = zip(plain, self._updates, strict=True)
        return [MergedDelta(delta.layer, delta.rows, delta.num_tokens, updates) for delta, updates in pairs]


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the fastest product of this number format: for float32 on CPUs a compiled one or oneDNN's, else torch's.

    On weights packed for either the rows of a draft cost hardly more than one; torch's own kernel takes longer with
    every row.
    """
    if (own := _kernels_of(weight)) is not None:
        return own.product(weight, bias)
    if not _is_plain(weight) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
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
    own = _kernels_of(transformer.embed.weight)
    with torch.inference_mode():
        merged = MergedTransformer(transformer, make, own, exact_rows=exact_rows).requires_grad_(False).eval()
        return merged, None if adapter is None else MergedAdapter(
            adapter, transformer.config, transformer.dtype, own
        )


def _kernels_of(weight: Tensor) -> Kernels | None:
    return kernels() if _is_plain(weight) else None


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _merge(linears: Sequence[nn.Linear], make: MakeProduct) -> Product:
    """Return one product with the outputs of several linear maps of the same input, one after the other."""
    if len(linears) == 1:
        return make(linears[0].weight, linears[0].bias)
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return make(torch.cat(weights), torch.cat(biases) if biases else None)


def _merge_low_rank(
    layer: Mapping[str, LowRank],
    config: TransformerConfig,
    dtype: torch.dtype,
    adder: Callable[[Tensor], Adder],
) -> dict[str, MergedUpdate]:
    """Return the updates of one layer for each merged product that has any."""
    merged = {}
    for whole, names in MERGED.items():
        downs: list[Tensor] = []
        ups: list[tuple[slice, slice, Adder]] = []
        rank = output = 0
        for name in names:
            size = config.linear_shape(name)[1]
            if name in layer:
                part = layer[name]
                ranks = slice(rank, rank + len(part.down))
                up = adder((part.scale * part.up).to(dtype))
                downs.append(part.down)
                ups.append((ranks, slice(output, output + size), up))
                rank = ranks.stop
            output += size
        if downs:
            merged[whole] = MergedUpdate(product(torch.cat(downs).to(dtype), None), tuple(ups))
    return merged
