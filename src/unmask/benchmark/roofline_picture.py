"""The picture of a roofline measurement."""

from pathlib import Path
from typing import Any

import numpy as np

from unmask.benchmark.roofline import Point, Roofline
from unmask.evaluation.figure import new_figure

PICTURE_FILE = "roofline.png"


def draw_roofline(report: Roofline, folder: Path, *, block_length: int) -> Path:
    """Draw where the modes lie under the machine's roof, what a forward costs, and from which batch on ar wins.

    A forward of one query is a step of mode ar; one of as many as `block_length`, the model's own, denoises, drafts or
    verifies a block. FailureError without matplotlib.
    """
    figure = new_figure(3)
    roof, cost, crossing = figure.subplots(1, 3)
    colours = {queries: f"C{number}" for number, queries in enumerate(report.config.queries)}
    _draw_roof(roof, report, block_length, colours)
    _draw_cost(cost, report, block_length)
    _draw_crossovers(crossing, report, block_length, colours)
    path = folder / PICTURE_FILE
    figure.savefig(path, dpi=130)
    return path


def _mode(queries: int, block_length: int) -> str:
    if queries == 1:
        return "1 query: ar"
    return f"{queries} queries" + (": a block" if queries == block_length else "")


def _draw_roof(axis: Any, report: Roofline, block_length: int, colours: dict[int, str]) -> None:
    """Draw a point per forward at the shortest context, its area by the batch, and lines through those of the modes.

    The roof is the best rate seen, of the machine's products or of a forward.
    """
    machine, context = report.machine, min(report.config.contexts)
    points = [point for point in report.points if point.shape.context == context]
    peak = max(machine.operations_per_s, *map(_rate, points))
    intensities = [_intensity(point) for point in points]
    line = np.geomspace(min(intensities) / 2, max(*intensities, machine.ridge) * 2, 100)
    axis.plot(line, np.minimum(peak, line * machine.bytes_per_s) / 1e9, color="0.3", lw=1)
    for queries, colour in colours.items():
        own = [point for point in points if point.shape.queries == queries]
        at = [_intensity(point) for point in own], [_rate(point) / 1e9 for point in own]
        label = _mode(queries, block_length)
        axis.scatter(
            *at, s=[12 + 6 * p.shape.batch for p in own], color=colour, label=label, alpha=0.7, zorder=3
        )
        if queries in (1, block_length):
            axis.plot(*at, color=colour, lw=1.5)
    axis.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="10⁹ operations per second")
    axis.set_title(f"context {context}, batch {'/'.join(map(str, report.config.batches))}", fontsize=9)
    axis.legend(frameon=False, fontsize=7)


def _draw_cost(axis: Any, report: Roofline, block_length: int) -> None:
    """Draw, of the smallest batch, how many forwards of one query one of n queries takes, and what the floor says."""
    batch = min(report.config.batches)
    for number, context in enumerate(report.config.contexts):
        own = [p for p in report.points if (p.shape.context, p.shape.batch) == (context, batch)]
        own.sort(key=lambda point: point.shape.queries)
        sizes, colour = [point.shape.queries for point in own], f"C{number}"
        times, floors = [p.seconds / own[0].seconds for p in own], [p.floor_s / own[0].floor_s for p in own]
        axis.plot(sizes, times, marker="o", ms=4, label=f"context {context}", color=colour)
        axis.plot(sizes, floors, ls="--", lw=1, label=f"context {context}, floor", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_xticks(report.config.queries, [str(queries) for queries in report.config.queries])
    axis.set(xlabel="queries of a forward", ylabel="time of a single-query forward", ylim=(0, None))
    axis.set_title(f"batch {batch}", fontsize=9)
    _name_place(axis, 1, "ar")
    if block_length in report.config.queries:
        _name_place(axis, block_length, "a block")
    axis.legend(frameon=False, fontsize=7)


def _name_place(axis: Any, queries: int, name: str) -> None:
    axis.axvline(queries, color="0.7", lw=0.8, zorder=0)
    axis.text(queries, 0.05, f" {name}", transform=axis.get_xaxis_transform(), fontsize=7, color="0.3")


def _draw_crossovers(axis: Any, report: Roofline, block_length: int, colours: dict[int, str]) -> None:
    """Draw the tokens per forward that break even, by the batch; a dotted line is a mode that decides so many.

    Where a mode's dotted line lies below the curve of its queries, ar is as fast. Said at its end for a block: from
    which measured batch on.
    """
    context, batches = min(report.config.contexts), report.config.batches
    for queries, colour in colours.items():
        own = [e for e in report.break_even if (e.queries, e.context) == (queries, context)]
        width = 2.5 if queries == block_length else 0.8
        at = [each.batch for each in own], [each.tokens_per_forward for each in own]
        axis.plot(*at, marker="o", ms=3, lw=width, color=colour)
    for speed in report.config.tokens_per_forward:
        axis.axhline(speed, color="0.5", lw=0.8, ls=":")
    for each in report.crossovers:
        if (each.queries, each.context) == (block_length, context):
            wins = f"ar from batch {each.batch}" if each.batch else f"block to batch {max(batches)}"
            place = {"transform": axis.get_yaxis_transform(), "fontsize": 7, "va": "center"}
            axis.text(1.01, each.tokens_per_forward, f"{each.tokens_per_forward:g}: {wins}", **place)
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    highest = 1.3 * max(report.config.tokens_per_forward)
    axis.set(xlabel="batch", ylabel="tokens per forward to break even with ar", ylim=(0, highest))
    axis.set_title(f"context {context}, colours as on the left", fontsize=9)


def _intensity(point: Point) -> float:
    return point.operations / point.num_bytes


def _rate(point: Point) -> float:
    return point.operations / point.seconds
