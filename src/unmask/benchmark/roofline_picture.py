"""The picture of a roofline measurement."""

from pathlib import Path

import numpy as np

from unmask.benchmark.roofline import Roofline
from unmask.evaluation.figure import new_figure

PICTURE_FILE = "roofline.png"


def draw_roofline(report: Roofline, folder: Path) -> Path:
    """Draw the forwards under the machine's roof, and what a forward costs by its queries; FailureError if it cannot.

    Left, the shortest context: a point per forward, its area by the batch. Right, one row: how many forwards of a
    single query one of n queries takes, which is the tokens per forward that a mode needs to break even.
    """
    figure = new_figure(2)
    roof, cost = figure.subplots(1, 2)
    machine, context = report.machine, min(report.config.contexts)
    points = [point for point in report.points if point.shape.context == context]
    intensity = np.array([point.operations / point.num_bytes for point in points])
    line = np.geomspace(intensity.min() / 2, max(intensity.max(), machine.ridge) * 2, 100)
    roof.plot(line, np.minimum(machine.operations_per_s, line * machine.bytes_per_s) / 1e9, color="0.3", lw=1)
    colours = {queries: f"C{number}" for number, queries in enumerate(report.config.queries)}
    for queries in report.config.queries:
        own = [point for point in points if point.shape.queries == queries]
        roof.scatter(
            [point.operations / point.num_bytes for point in own],
            [point.operations / point.seconds / 1e9 for point in own],
            s=[12 + 6 * point.shape.batch for point in own],
            color=colours[queries],
            label=f"{queries} quer{'y' if queries == 1 else 'ies'}",
            alpha=0.7,
        )
    roof.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="10⁹ operations per second")
    roof.set_title(f"context {context}, batch {'/'.join(map(str, report.config.batches))}", fontsize=9)
    roof.legend(frameon=False, fontsize=7)

    for number, length in enumerate(report.config.contexts):
        own = [
            p
            for p in report.points
            if p.shape.context == length and p.shape.batch == min(report.config.batches)
        ]
        own.sort(key=lambda point: point.shape.queries)
        sizes = [point.shape.queries for point in own]
        style = {"color": f"C{number}"}
        cost.plot(
            sizes,
            [p.seconds / own[0].seconds for p in own],
            marker="o",
            ms=4,
            label=f"context {length}",
            **style,
        )
        cost.plot(
            sizes,
            [p.floor_s / own[0].floor_s for p in own],
            ls="--",
            lw=1,
            label=f"context {length}, floor",
            **style,
        )
    cost.set_xscale("log", base=2)
    cost.set_xticks(report.config.queries, [str(queries) for queries in report.config.queries])
    cost.set(xlabel="queries of a forward", ylabel="time of a single-query forward", ylim=(0, None))
    cost.legend(frameon=False, fontsize=7)
    path = folder / PICTURE_FILE
    figure.savefig(path, dpi=130)
    return path
