"""``unmask sol``: how far decoding is from its speed of light."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthsOption,
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

    from unmask.evaluation.speed_of_light import SpeedOfLight


def sol(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: ReportFolderOption = Path("speed-of-light"),
    prompts: NumPromptsOption = 3,
    max_tokens: MaxTokensOfEachOption = 64,
    blocks: BlockLengthsOption = "4,8,16,32",
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="A rule to measure beside the oracles; may be repeated (default: six of them).",
            metavar="RULE",
            show_default=False,
        ),
    ] = None,
    max_canvases: Annotated[
        int,
        typer.Option(
            help="Most canvases that the search for the fewest forwards runs for one block.", metavar="N"
        ),
    ] = 200,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure how many tokens a forward could decide at best, beside what rules and speculation do.

    Stop with Ctrl-C and give the same command again to go on.
    """
    block_lengths = read_numbers(blocks, "--blocks", int)
    from unmask.engine.side_by_side import side_by_side
    from unmask.evaluation.speed_of_light import (
        DEFAULT_RULES,
        REPORT_FILE,
        SpeedOfLightConfig,
        measure_speed_of_light,
    )
    from unmask.evaluation.speed_picture import draw_speed_of_light

    config = SpeedOfLightConfig(
        num_prompts=prompts,
        max_tokens=max_tokens,
        block_lengths=block_lengths,
        rules=tuple(rule) if rule else DEFAULT_RULES,
        max_canvases=max_canvases,
    )
    opened = open_model(model, adapter=adapter, dtype=dtype, device=device, offline=offline)
    with RunBar() as bar:
        report = measure_speed_of_light(opened, config, out, together=side_by_side, observe=bar.follow)
        pictures = drawn(lambda: [draw_speed_of_light(report, out)], bar)
    if json:
        print_json(asdict(report))
        return
    print_report([_overall(report), _kinds(report)], [out / REPORT_FILE, *pictures])


def _overall(report: "SpeedOfLight") -> "Table":
    from unmask.evaluation.speed_of_light import ORACLES

    first = report.blocks[0].overall
    table = new_table(
        f"tokens per forward, of {first.num_prompts} prompts: every decode forward counts",
        "",
        *(f"block {block.block_length}" for block in report.blocks),
    )
    for name in ORACLES:
        speeds = [block.overall.oracles.get(name) for block in report.blocks]
        add_row(table, name, *("" if one is None else shown(one.tokens_per_forward) for one in speeds))
    for place, name in enumerate(first.ways):
        ways = [list(block.overall.ways.values())[place] for block in report.blocks]
        add_row(table, name.rpartition(", block")[0], *(shown(way.tokens_per_forward) for way in ways))
    fewest = [block.overall.oracles.get("fewest") for block in report.blocks]
    add_row(
        table,
        "fewest, denoising alone",
        *("" if one is None else shown(one.tokens_per_denoise) for one in fewest),
    )
    unproven = (f"{block.overall.num_unproven} of {block.overall.num_blocks}" for block in report.blocks)
    add_row(table, "blocks not searched to the end", *unproven)
    return table


def _kinds(report: "SpeedOfLight") -> "Table":
    kinds = list(report.blocks[0].kinds)
    table = new_table("fewest forwards, by kind of prompt: tokens per forward", "", *kinds)
    for block in report.blocks:
        speeds = [block.kinds[kind].oracles.get("fewest") for kind in kinds]
        cells = ("" if one is None else f"{one.tokens_per_forward.mean:.2f}" for one in speeds)
        add_row(table, f"block {block.block_length}", *cells)
    return table
