"""``unmask frontier``: quality against forwards, for every way to decode."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    MaxTokensOfEachOption,
    NumPromptsOption,
    OfflineFlag,
    OptionalModel,
    ReportFolderOption,
)
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_model
from unmask.cli.tables import add_row, drawn, new_table, print_report, shown

if TYPE_CHECKING:
    from rich.table import Table

    from unmask.evaluation.frontier import Frontier


def frontier(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: ReportFolderOption = Path("frontier"),
    judge: Annotated[
        str | None,
        typer.Option(
            help="A model that reads what is written: catalogue name, folder, .gguf file or hub id (default: the "
            "model itself, which is no independent judge).",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    prompts: NumPromptsOption = 2,
    max_tokens: MaxTokensOfEachOption = 64,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="A rule to measure; may be repeated (default: every rule at several settings).",
            metavar="RULE",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="A sampler to measure at every number of --steps; may be repeated (default: the model's own where no "
            "rule decodes it).",
            metavar="SAMPLER",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Forwards of a sampler for each block, parted by commas.", metavar="N,N")
    ] = "2,4,8,16,32,64",
    temperatures: Annotated[
        str,
        typer.Option(
            help="Several of them, with 1 among them, compare all ways at the entropy of mode ar at temperature 1 (of "
            "the first way, where the model has no mode ar).",
            metavar="T,T",
        ),
    ] = "0",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of unmask eval to score greedily in every way.",
            metavar="TASK,TASK",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="The first N items of each task.", metavar="N")] = 20,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Time texts of these lengths too, at a fixed number of steps and at fixed tokens per forward.",
            metavar="N,N",
            show_default=False,
        ),
    ] = None,
    block_length: BlockLengthOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure quality against forwards: agreement, an independent judge with entropy, task scores.

    Stop with Ctrl-C and give the same command again to go on.
    """
    from unmask.engine.side_by_side import side_by_side
    from unmask.evaluation.frontier import REPORT_FILE, TABLE_FILE, measure_frontier
    from unmask.evaluation.frontier_config import FrontierConfig
    from unmask.evaluation.frontier_picture import draw_frontier, draw_lengths
    from unmask.evaluation.tasks import find_tasks
    from unmask.evaluation.tasks.data import TaskData
    from unmask.model.store import cache_directory

    config = FrontierConfig(
        num_prompts=prompts,
        max_tokens=max_tokens,
        block_length=block_length,
        rules=tuple(rule or ()),
        samplers=tuple(sampler or ()),
        steps=read_numbers(steps, "--steps", int),
        temperatures=read_numbers(temperatures, "--temperatures", float),
        limit=limit,
        lengths=() if lengths is None else read_numbers(lengths, "--lengths", int),
    )
    chosen = {} if tasks is None else find_tasks(tasks)
    opened = open_model(model, adapter=adapter, dtype=dtype, device=device, offline=offline)
    reader = opened
    if judge is not None:
        reader = open_model(judge, adapter=None, dtype=dtype, device=device, offline=offline)
    with RunBar() as bar:
        data = TaskData(cache_directory(), offline=offline, progress=bar.print)
        report = measure_frontier(
            opened, reader, config, out, tasks=chosen, data=data, together=side_by_side, observe=bar.follow
        )
        pictures = drawn(
            lambda: [draw_frontier(report, out), *([draw_lengths(report, out)] if report.times else [])], bar
        )
    if json:
        print_json(asdict(report))
        return
    own = "the judge is the model itself: its bits per byte say what it expects, not how good a text is"
    remarks = [own] if report.judges_itself else []
    print_report(_tables(report), [out / REPORT_FILE, out / TABLE_FILE, *pictures], *remarks)


def _tables(report: "Frontier") -> "list[Table]":
    tables = [_points(report)]
    if report.matched:
        assert report.entropy is not None
        table = new_table(
            f"at the entropy of {report.reference}: {report.entropy:.2f} nats",
            *("way", _bits(report), "temperature"),
        )
        for each in report.matched:
            cells = (each.bits_per_byte, each.temperature)
            add_row(table, each.name, *("" if one is None else f"{one:.3f}" for one in cells))
        tables.append(table)
    if report.times:
        table = new_table("time against length", "series", "tokens", "seconds", "forwards")
        for time in report.times:
            add_row(
                table, time.series, str(time.length), str(time.seconds), f"{time.num_decode_forwards:.1f}"
            )
        tables.append(table)
    return tables


def _bits(report: "Frontier") -> str:
    return "own bits/byte" if report.judges_itself else "bits/byte"


def _points(report: "Frontier") -> "Table":
    tasks = list(dict.fromkeys(score.task for point in report.points for score in point.tasks))
    table = new_table(
        f"{report.config.num_prompts} prompts of each kind, judged by {report.judge['name']}",
        *(
            "way",
            "tokens/forward",
            _bits(report),
            "entropy",
            "distinct-2",
            "as one at a time",
            "as ar",
            *tasks,
        ),
    )
    for point in report.points:
        quality = point.quality
        scores = {score.task: score.score for score in point.tasks}
        add_row(
            table,
            point.name,
            *map(shown, (point.tokens_per_forward, quality.bits_per_byte, quality.entropy)),
            f"{quality.distinct[1]:.2f}",
            *(shown(None if one is None else one.overall) for one in (point.as_serial, point.as_ar)),
            *(shown(scores.get(task)) for task in tasks),
        )
    return table
