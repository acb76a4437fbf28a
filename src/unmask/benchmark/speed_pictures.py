"""The pictures of the speed benchmarks."""

from pathlib import Path

from unmask.benchmark.latency import LatencyReport
from unmask.benchmark.throughput import ThroughputReport
from unmask.evaluation.figure import new_figure


def draw_latency(report: LatencyReport, path: Path) -> Path:
    """Draw tokens per second and the time to the first token, median and range; FailureError without matplotlib."""
    figure = new_figure(2)
    names = list(report.speeds)[::-1]
    panels = {
        "tokens per second": [report.speeds[name].tokens_per_s for name in names],
        "ms to the first token": [report.speeds[name].first_token_s for name in names],
    }
    for axis, (label, spreads) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        factor = 1000 if label.startswith("ms") else 1
        middle = [factor * each.median for each in spreads]
        ranges = [
            [factor * (each.median - each.least) for each in spreads],
            [factor * (each.greatest - each.median) for each in spreads],
        ]
        colours = ["0.6" if name == report.baseline else "C0" for name in names]
        axis.barh(names, middle, xerr=ranges, color=colours, ecolor="0.3", capsize=2)
        axis.set_xlabel(label)
    figure.savefig(path, dpi=130)
    return path


def draw_throughput(report: ThroughputReport, path: Path) -> Path:
    """Draw tokens per second by the number of requests at once, a panel for each number format."""
    formats = list(dict.fromkeys(point.number_format for point in report.points))
    figure = new_figure(len(formats))
    axes = figure.subplots(1, len(formats), squeeze=False, sharey=True)[0]
    for axis, number_format in zip(axes, formats, strict=True):
        for number, mode in enumerate(report.config.modes):
            own = [
                point
                for point in report.points
                if point.mode == mode and point.number_format == number_format
            ]
            sizes = [point.concurrency for point in own]
            axis.plot(
                sizes, [p.tokens_per_s.median for p in own], marker="o", ms=4, label=mode, color=f"C{number}"
            )
            axis.fill_between(
                sizes,
                [point.tokens_per_s.least for point in own],
                [point.tokens_per_s.greatest for point in own],
                color=f"C{number}",
                alpha=0.15,
                lw=0,
            )
        axis.set(xscale="log", xlabel="requests at once", ylabel="tokens per second", title=number_format)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    return path
