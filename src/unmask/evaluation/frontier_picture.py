"""The pictures of a frontier."""

from collections.abc import Callable, Sequence
from pathlib import Path

from unmask.evaluation.average import Average
from unmask.evaluation.figure import error_bars, new_figure
from unmask.evaluation.frontier import Frontier
from unmask.evaluation.frontier_point import FrontierPoint

PICTURE_FILE = "frontier.png"
LENGTH_PICTURE_FILE = "length.png"


def draw_frontier(report: Frontier, folder: Path) -> Path:
    """Draw agreement, text quality and task scores against tokens per forward; FailureError without matplotlib.

    Every decode forward counts. One line for each rule or sampler and temperature, through its settings; bits per byte
    stand beside entropy, without which they mean little.
    """
    points = [point for point in report.points if point.tokens_per_forward is not None]
    values: dict[str, Callable[[FrontierPoint], Average | None]] = {
        "tokens as one at a time": lambda point: None if point.as_serial is None else point.as_serial.overall,
        "tokens as in mode ar": lambda point: None if point.as_ar is None else point.as_ar.overall,
        "own bits per byte" if report.judges_itself else "bits per byte, by the judge": lambda point: (
            point.quality.bits_per_byte
        ),
        "entropy of a text's tokens, nats": lambda point: point.quality.entropy,
    }
    for task, metric in dict.fromkeys((score.task, score.metric) for p in points for score in p.tasks):
        values[f"{task}: {metric}"] = _score_of(task)
    panels = {label: value for label, value in values.items() if any(map(value, points))}
    figure = new_figure(len(panels))
    for axis, (label, value) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, own in _lines(points).items():
            known = [(p.tokens_per_forward, y) for p in own if (y := value(p)) is not None]
            axis.errorbar(
                [x.mean for x, _ in known if x is not None],
                [y.mean for _, y in known],
                yerr=error_bars([y for _, y in known]),
                marker="o",
                ms=3,
                lw=1,
                elinewidth=0.5,
                label=name,
            )
        axis.set(xlabel="tokens per forward", ylabel=label)
    axis.legend(frameon=False, fontsize=6)
    path = folder / PICTURE_FILE
    figure.savefig(path, dpi=130)
    return path


def draw_lengths(report: Frontier, folder: Path) -> Path:
    """Draw seconds against the length of a text, one line for each series."""
    figure = new_figure(1)
    axis = figure.subplots()
    for series in dict.fromkeys(time.series for time in report.times):
        own = [time for time in report.times if time.series == series]
        axis.errorbar(
            [time.length for time in own],
            [time.seconds.mean for time in own],
            yerr=error_bars([time.seconds for time in own]),
            marker="o",
            ms=3,
            label=series,
        )
    axis.set(xlabel="tokens written", ylabel="seconds", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    path = folder / LENGTH_PICTURE_FILE
    figure.savefig(path, dpi=130)
    return path


def _score_of(task: str) -> Callable[[FrontierPoint], Average | None]:
    return lambda point: next((score.score for score in point.tasks if score.task == task), None)


def _lines(points: Sequence[FrontierPoint]) -> dict[str, list[FrontierPoint]]:
    """Return the points by rule or sampler and temperature, each line from few tokens per forward to many."""
    lines: dict[str, list[FrontierPoint]] = {}
    for point in points:
        way = point.way
        family = (way.rule or way.sampler or way.mode).partition(":")[0]
        heat = f", temperature {way.temperature:g}" if way.temperature else ""
        lines.setdefault(family + heat, []).append(point)
    for own in lines.values():
        own.sort(key=lambda point: 0.0 if point.tokens_per_forward is None else point.tokens_per_forward.mean)
    return lines
