"""What data-sheet rates allow: tokens per second and crossovers on accelerators that nobody measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product

from pydantic import TypeAdapter

from unmask.benchmark.forward_cost import ForwardCost, ForwardShape, Machine
from unmask.config import TransformerConfig

_BYTES_PER_NUMBER = 2
"""bf16, the format of the data sheets' rates."""

_BATCHES = tuple(2**power for power in range(13))


@dataclass(frozen=True)
class Projection:
    """What data-sheet rates allow a shape on an accelerator, in bf16: no measurement, and no kernel reaches it.

    `ar_tokens_per_s`, `tokens_per_s`: of one request. `crossover_batch`: from how many requests on, by powers of two,
    it is no longer faster; None where it always is.
    """

    shape: str
    accelerator: str
    source: str
    queries: int
    tokens_per_forward: float
    context: int
    ar_tokens_per_s: float
    tokens_per_s: float
    crossover_batch: int | None


@dataclass(frozen=True)
class _Accelerator:
    name: str
    operations_per_s: float
    bytes_per_s: float
    source: str


@dataclass(frozen=True)
class _Shape:
    name: str
    source: str
    config: TransformerConfig


@dataclass(frozen=True)
class _Data:
    accelerators: tuple[_Accelerator, ...]
    shapes: tuple[_Shape, ...]


_DATA = TypeAdapter(_Data)


def project(
    models: Mapping[str, TransformerConfig],
    queries: Sequence[int],
    tokens_per_forward: Sequence[float],
    context: int,
) -> tuple[Projection, ...]:
    """Apply the data sheets to some models and to the published shapes, for modes that decide so much per forward.

    Left out: single queries, and modes that would decide more tokens than their forwards have queries.
    """
    data = _DATA.validate_json((files("unmask.benchmark") / "accelerators.json").read_bytes())
    shapes = {**models, **{shape.name: shape.config for shape in data.shapes}}
    modes = [(n, speed) for n, speed in product(queries, tokens_per_forward) if n > 1 and speed <= n]
    return tuple(
        _projection(name, shape, sheet, n, speed, context)
        for sheet, (name, shape), (n, speed) in product(data.accelerators, shapes.items(), modes)
    )


def _projection(
    name: str,
    shape: TransformerConfig,
    sheet: _Accelerator,
    queries: int,
    tokens_per_forward: float,
    context: int,
) -> Projection:
    machine = Machine(sheet.name, sheet.operations_per_s, sheet.bytes_per_s)

    def seconds(batch: int, queries: int) -> float:
        forward = ForwardShape(batch, queries, context)
        return ForwardCost.of(shape, forward, bytes_per_number=_BYTES_PER_NUMBER).floor_s(machine)

    slower = (n for n in _BATCHES if seconds(n, queries) >= tokens_per_forward * seconds(n, 1))
    return Projection(
        shape=name,
        accelerator=machine.name,
        source=sheet.source,
        queries=queries,
        tokens_per_forward=tokens_per_forward,
        context=context,
        ar_tokens_per_s=1 / seconds(1, 1),
        tokens_per_s=tokens_per_forward / seconds(1, queries),
        crossover_batch=next(slower, None),
    )
