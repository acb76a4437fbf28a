"""Where a model's forwards lie under the roof of a machine, and what that says of its modes.

A mode that decides `tokens_per_forward` tokens with forwards of n queries is as fast as autoregressive decoding where
its forward takes as many times as long as one of a single query: its break-even.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch

from unmask.benchmark.forward_cost import ForwardCost, ForwardShape, Machine
from unmask.benchmark.machine_rates import measure_machine, time_calls
from unmask.benchmark.projection import Projection, project
from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.ledger import Ledger, Observer
from unmask.evaluation.provenance import provenance_of, timing_conditions
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser
from unmask.training.run_folder import RunFolder

REPORT_FILE = "roofline.json"
MACHINE_FILE = "machine.jsonl"
POINTS_FILE = "points.jsonl"


@dataclass(frozen=True)
class RooflineConfig:
    """What is measured: every combination of queries per row, rows, and cached tokens per row.

    `tokens_per_forward`: of the imagined modes for which crossovers and speeds are told. UsageError for values out of
    range; queries must contain 1, for autoregressive decoding is what all is compared with.
    """

    queries: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (64, 512)
    tokens_per_forward: tuple[float, ...] = (1.5, 2.0, 3.0, 6.0)
    repeats: int = 7

    def __post_init__(self) -> None:
        for name in ("queries", "batches", "contexts", "tokens_per_forward"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise UsageError(f"{name}={values}: give one or more, each at least 1")
        if 1 not in self.queries:
            raise UsageError(f"queries={self.queries} must contain 1, the forward of autoregressive decoding")
        if self.repeats < 1:
            raise UsageError(f"repeats={self.repeats} must be at least 1")


@dataclass(frozen=True)
class Point:
    """One measured forward: median seconds, what it had to do, and the floor that the measured machine sets."""

    shape: ForwardShape
    seconds: float
    operations: float
    num_bytes: float
    floor_s: float


@dataclass(frozen=True)
class BreakEven:
    """Tokens per forward at which forwards of `queries` tokens are as fast as autoregressive decoding."""

    queries: int
    batch: int
    context: int
    tokens_per_forward: float


@dataclass(frozen=True)
class Crossover:
    """The smallest batch measured at which a mode is no longer faster than autoregressive decoding; None if none is."""

    queries: int
    tokens_per_forward: float
    context: int
    batch: int | None


@dataclass(frozen=True)
class Roofline:
    """The report."""

    config: RooflineConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    machine: Machine
    points: tuple[Point, ...]
    break_even: tuple[BreakEven, ...]
    crossovers: tuple[Crossover, ...]
    projections: tuple[Projection, ...]


def measure_roofline(
    model: LanguageModel,
    config: RooflineConfig,
    folder: Path,
    observe: Observer = lambda progress: None,
) -> Roofline:
    """Measure the machine and the forwards, and write `REPORT_FILE` into the folder.

    Every forward is written down as soon as it is timed, so a run that was cut off goes on. Raise UsageError where the
    model's window is too short, and for a folder that holds other settings or the times of another machine.
    """
    denoiser, transformer = model.denoiser, model.denoiser.transformer
    longest = max(config.contexts) + max(config.queries)
    if longest > transformer.config.max_positions:
        raise UsageError(
            f"{longest} tokens do not fit the model's window of {transformer.config.max_positions}",
            "measure shorter contexts",
        )
    place = RunFolder(folder, "roofline measurement")
    described = {"name": model.checkpoint.card.name, "fingerprint": fingerprint(model)}
    place.claim_settings({**asdict(config), "model": described, **timing_conditions(model)})
    (machine,) = Ledger(place, MACHINE_FILE, Machine).fill(
        [transformer],
        lambda probed: measure_machine(probed.device, probed.dtype, repeats=config.repeats),
        "machine",
        observe,
    )
    shapes = [
        ForwardShape(batch, queries, context)
        for context, batch, queries in product(config.contexts, config.batches, config.queries)
    ]
    points = Ledger(place, POINTS_FILE, Point).fill(
        shapes, lambda shape: _measure(denoiser, shape, machine, repeats=config.repeats), "forwards", observe
    )
    report = Roofline(
        config,
        provenance_of(model),
        described,
        machine,
        tuple(points),
        break_evens(points),
        crossovers(points, config.tokens_per_forward),
        project(
            {model.checkpoint.card.name: transformer.config},
            config.queries,
            config.tokens_per_forward,
            max(config.contexts),
        ),
    )
    place.write_json(REPORT_FILE, asdict(report))
    return report


def _measure(denoiser: Denoiser, shape: ForwardShape, machine: Machine, *, repeats: int) -> Point:
    """Time one forward with all its logits, on keys and values that stand for a context."""
    transformer = denoiser.transformer
    config, device = transformer.config, transformer.device
    cache = denoiser.new_cache(shape.context, num_rows=shape.batch)
    cache.keys.normal_()
    cache.values.normal_()
    cache.lengths = [shape.context] * shape.batch
    layout = Layout(
        [Segment(shape.context, shape.queries, causal=False, row=row) for row in range(shape.batch)]
    )
    tokens = torch.arange(layout.num_tokens, device=device) % config.vocab_size

    @torch.inference_mode()
    def forward() -> object:
        return denoiser.head(transformer(tokens, layout, cache))

    cost = ForwardCost.of(config, shape, bytes_per_number=transformer.dtype.itemsize)
    return Point(
        shape,
        median(time_calls(forward, device, repeats=repeats)),
        cost.operations,
        cost.num_bytes,
        cost.floor_s(machine),
    )


def break_evens(points: Sequence[Point]) -> tuple[BreakEven, ...]:
    """Compare every forward of several queries with that of one, at the same batch and context."""
    seconds = {
        (point.shape.batch, point.shape.queries, point.shape.context): point.seconds for point in points
    }
    return tuple(
        BreakEven(queries, batch, context, taken / seconds[batch, 1, context])
        for (batch, queries, context), taken in seconds.items()
        if queries > 1
    )


def crossovers(points: Sequence[Point], tokens_per_forward: Sequence[float]) -> tuple[Crossover, ...]:
    """Find the batch from which on autoregressive decoding wins, for every number of queries."""
    found = break_evens(points)
    places = dict.fromkeys((each.queries, each.context) for each in found)
    return tuple(
        Crossover(
            queries,
            speed,
            context,
            min(
                (
                    each.batch
                    for each in found
                    if (each.queries, each.context) == (queries, context) and each.tokens_per_forward >= speed
                ),
                default=None,
            ),
        )
        for (queries, context), speed in product(places, tokens_per_forward)
    )
