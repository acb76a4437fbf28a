"""What ``unmask bench`` prints of its reports."""

from typing import TYPE_CHECKING

from unmask.cli.tables import add_row, new_table

if TYPE_CHECKING:
    from rich.table import Table

    from unmask.benchmark.latency import LatencyReport, Spread
    from unmask.benchmark.throughput import ThroughputReport


def speed_tables(report: "LatencyReport | ThroughputReport") -> "list[Table]":
    """Return the table of one request by ways to write, or those of many requests by number format."""
    from unmask.benchmark.latency import LatencyReport

    if isinstance(report, LatencyReport):
        return [_speed_table(report)]
    return [
        _crowd_table(report, number_format)
        for number_format in {p.number_format: None for p in report.points}
    ]


def _speed_table(report: "LatencyReport") -> "Table":
    config = report.config
    table = new_table(
        f"{config.max_tokens} tokens after each of {len(report.prompts)} prompts, {config.num_rounds} round(s): "
        "median (least to greatest)",
        *("way to write", "tokens/s", "decoding only", f"x {report.baseline}"),
        *("ms to first token", "tokens/forward", "same text as"),
    )
    for name, speed in report.speeds.items():
        add_row(
            table,
            name,
            _range(speed.tokens_per_s, ".1f"),
            f"{speed.decode_tokens_per_s.median:.1f}",
            _range(speed.ratio, ".2f"),
            f"{1000 * speed.first_token_s.median:.0f}",
            "" if speed.tokens_per_forward is None else f"{speed.tokens_per_forward:.2f}",
            ""
            if name == speed.reference
            else f"{speed.reference}: {speed.num_equal} of {len(report.prompts)}",
        )
    return table


def _crowd_table(report: "ThroughputReport", number_format: str) -> "Table":
    modes = report.config.modes
    table = new_table(
        f"tokens/s in {number_format}, {report.config.max_tokens} tokens each: median (least to greatest)",
        *("requests at once", *modes, "auto / best of ar, speculative"),
    )
    points = {(p.concurrency, p.mode): p for p in report.points if p.number_format == number_format}
    balances = {b.concurrency: b for b in report.balances if b.number_format == number_format}
    for size in report.config.concurrencies:
        balance = balances.get(size)
        add_row(
            table,
            str(size),
            *(_range(points[size, mode].tokens_per_s, ".1f") for mode in modes),
            "" if balance is None else f"{balance.auto_over_best:.2f}",
        )
    return table


def _range(spread: "Spread", form: str) -> str:
    return f"{spread.median:{form}} ({spread.least:{form}} to {spread.greatest:{form}})"
