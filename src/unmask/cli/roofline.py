"""``unmask roofline``: what this machine allows a model, and what its modes make of it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    OfflineFlag,
    OptionalModel,
    ReportFolderOption,
)
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json, print_line
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_model
from unmask.cli.tables import add_row, drawn, new_table, print_report

if TYPE_CHECKING:
    from rich.table import Table

    from unmask.benchmark.roofline import Roofline


def roofline(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: ReportFolderOption = Path("roofline"),
    queries: Annotated[
        str, typer.Option(help="Tokens per row of a forward, parted by commas; 1 among them.", metavar="N,N")
    ] = "1,2,4,8,16,32,64",
    batches: Annotated[str, typer.Option(help="Rows of a forward.", metavar="N,N")] = "1,2,4,8",
    contexts: Annotated[str, typer.Option(help="Cached tokens of each row.", metavar="N,N")] = "64,512",
    tokens_per_forward: Annotated[
        str, typer.Option(help="Of modes whose crossover with ar is wanted.", metavar="X,X")
    ] = "1.5,2,3,6",
    repeats: Annotated[int, typer.Option(help="Of every forward; the median counts.", metavar="N")] = 7,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure this machine's matrix rate and bandwidth, and a model's forwards under that roof.

    Stop with Ctrl-C and give the same command again to go on.
    """
    from unmask.benchmark.roofline import REPORT_FILE, RooflineConfig, measure_roofline
    from unmask.benchmark.roofline_picture import draw_roofline

    config = RooflineConfig(
        queries=read_numbers(queries, "--queries", int),
        batches=read_numbers(batches, "--batches", int),
        contexts=read_numbers(contexts, "--contexts", int),
        tokens_per_forward=read_numbers(tokens_per_forward, "--tokens-per-forward", float),
        repeats=repeats,
    )
    opened = open_model(model, adapter=adapter, dtype=dtype, device=device, offline=offline)
    with RunBar() as bar:
        report = measure_roofline(opened, config, out, bar.follow)
        length = opened.checkpoint.card.block_length
        pictures = drawn(lambda: [draw_roofline(report, out, block_length=length)], bar)
    if json:
        print_json(asdict(report))
        return
    machine = report.machine
    print_line(
        f"{machine.name}, {report.provenance['threads']} thread(s): "
        f"{machine.operations_per_s / 1e9:.1f} · 10⁹ operations/s, {machine.bytes_per_s / 1e9:.1f} GB/s, "
        f"ridge {machine.ridge:.1f} operations per byte\n"
    )
    tables = [_forwards(report), _crossovers(report), _projected(report)]
    print_report(tables, [out / REPORT_FILE, *pictures])


def _forwards(report: "Roofline") -> "Table":
    table = new_table(
        "forwards",
        *("queries", "batch", "context", "ms", "floor ms", "operations/byte", "break-even tokens/forward"),
    )
    even = {(each.queries, each.batch, each.context): each.tokens_per_forward for each in report.break_even}
    for point in report.points:
        shape = point.shape
        needed = even.get((shape.queries, shape.batch, shape.context))
        add_row(
            table,
            *(str(number) for number in (shape.queries, shape.batch, shape.context)),
            f"{1e3 * point.seconds:.2f}",
            f"{1e3 * point.floor_s:.2f}",
            f"{point.operations / point.num_bytes:.2f}",
            "" if needed is None else f"{needed:.2f}",
        )
    return table


def _crossovers(report: "Roofline") -> "Table":
    speeds = report.config.tokens_per_forward
    table = new_table(
        "batch from which ar is as fast, by tokens per forward",
        *("queries", "context", *(f"{speed:g}" for speed in speeds)),
    )
    for queries in report.config.queries:
        for context in report.config.contexts:
            own = {
                each.tokens_per_forward: each.batch
                for each in report.crossovers
                if (each.queries, each.context) == (queries, context)
            }
            if own:
                most = max(report.config.batches)
                cells = (f"> {most}" if own[speed] is None else str(own[speed]) for speed in speeds)
                add_row(table, str(queries), str(context), *cells)
    return table


def _projected(report: "Roofline") -> "Table":
    table = new_table(
        "projections from data sheets, not measurements: bf16, one request",
        *("model", "on", "queries", "tokens/forward", "ar tokens/s", "tokens/s", "crossover batch"),
    )
    queries, speed = max(report.config.queries), max(report.config.tokens_per_forward)
    for each in report.projections:
        if (each.queries, each.tokens_per_forward) == (min(32, queries), speed):
            add_row(
                table,
                each.shape,
                each.accelerator,
                str(each.queries),
                f"{each.tokens_per_forward:g}",
                f"{each.ar_tokens_per_s:.0f}",
                f"{each.tokens_per_s:.0f}",
                "" if each.crossover_batch is None else str(each.crossover_batch),
            )
    return table
