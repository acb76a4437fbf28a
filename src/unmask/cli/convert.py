"""``unmask convert``: give an autoregressive model a diffusion mode, and leave it as it was."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    OfflineFlag,
    OptionalModel,
    SeedOption,
)
from unmask.cli.output import print_json, print_line
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_model
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.training.conversion import ConversionConfig, ConversionEvent, StepRecord

DEFAULT_STEPS = 1000


def convert(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an unfinished one is continued.", metavar="FOLDER")
    ],
    steps: Annotated[
        int | None, typer.Option(help=f"Optimiser steps (default {DEFAULT_STEPS}).", metavar="N")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training time, in the place of --steps.", metavar="MIN")
    ] = None,
    synthetic_tokens: Annotated[
        int, typer.Option(help="Tokens of training text that the model writes itself.", metavar="N")
    ] = 300_000,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Your own text: .txt, .txt.xz or .jsonl; may be repeated.", metavar="FILE"),
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Tokens taken from those files.", metavar="N")] = 100_000,
    length: Annotated[int, typer.Option(help="Tokens of a document, at most.", metavar="N")] = 320,
    batch_documents: Annotated[int, typer.Option(help="Documents in one step.", metavar="N")] = 3,
    synthesis_rows: Annotated[int, typer.Option(help="Documents written side by side.", metavar="N")] = 256,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.", metavar="N")] = 32,
    alpha: Annotated[float, typer.Option(help="The update is scaled by alpha / rank.", metavar="A")] = 32.0,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.", metavar="RATE")] = 1e-3,
    drafting_share: Annotated[
        float, typer.Option(help="Share of fully open canvases.", metavar="SHARE")
    ] = 0.7,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train a diffusion adapter for an autoregressive model, which itself stays as it is.

    The folder can then be used as a model. Stop with Ctrl-C and give the same command again to go on.
    """
    settings = {
        "model": model,
        "seed": seed,
        "steps": DEFAULT_STEPS if steps is None and minutes is None else steps,
        "minutes": minutes,
        "synthetic_tokens": synthetic_tokens,
        "texts": [str(path) for path in text or []],
        "text_tokens": text_tokens,
        "length": length,
        "batch_documents": batch_documents,
        "synthesis_rows": synthesis_rows,
        "rank": rank,
        "alpha": alpha,
        "learning_rate": learning_rate,
        "drafting_share": drafting_share,
        "dtype": dtype,
    }
    config = _validated(settings)
    opened = open_model(model, adapter="none", dtype=dtype, device=device, offline=offline)
    from unmask.training.conversion import Conversion

    conversion = Conversion(config, out, opened.checkpoint)
    measured: list[StepRecord] = []
    with RunBar() as bar:
        conversion.run(lambda event: _show(event, bar, measured))
    if json:
        print_json({"folder": str(out), "held_out": [asdict(record) for record in measured]})
        return
    print_line(f"the adapter is in {out}: unmask generate {out} PROMPT --mode speculative")


def _validated(settings: dict[str, object]) -> "ConversionConfig":
    from pydantic import ValidationError

    from unmask.training.conversion import ConversionConfig

    try:
        return ConversionConfig.model_validate_json(json_format.dumps(settings))
    except ValidationError as error:
        fault = error.errors()[0]
        name = "--" + str(fault["loc"][0]).replace("_", "-") + ": " if fault["loc"] else ""
        raise UsageError(f"{name}{fault['msg']}", "see unmask convert --help") from error


def _show(event: "ConversionEvent", bar: RunBar, measured: "list[StepRecord]") -> None:
    record = event.record
    if record is not None and record.split == "held_out":
        measured.append(record)
        bar.print(_line(record))
        return
    detail = f"{event.done:,.0f} tokens"
    if record is not None:
        detail = f"step {record.step}, loss {record.loss:.3f}, {record.num_tokens:,} tokens"
    bar.show(event.stage, event.done, event.total, detail)


def _line(record: "StepRecord") -> str:
    cycle = "" if record.tokens_per_cycle is None else f", {record.tokens_per_cycle:.2f} tokens per cycle"
    return f"held out after {record.step} steps: loss {record.loss:.3f}{cycle}"
