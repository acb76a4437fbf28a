"""``unmask convert``: give an autoregressive model a diffusion mode."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import environ
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    DebugFlag,
    DeviceOption,
    DocumentLengthOption,
    DtypeOption,
    JsonFlag,
    OfflineFlag,
    OptionalModel,
    RunFolderOption,
    SeedOption,
    SynthesisRowsOption,
)
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json, print_line
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_checkpoint
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.training.conversion import ConversionEvent, StepRecord
    from unmask.training.conversion_config import ConversionConfig

DEFAULT_STEPS = 1000
DEFAULT_SYNTHETIC_TOKENS = 300_000
SYNTHETIC_TOKENS_A_MINUTE = 6000
"""About what two cores train on in that time: more would take longer to write than to learn."""


def convert(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: RunFolderOption,
    recipe: Annotated[
        str,
        typer.Option(
            help="frozen: an adapter beside the untouched model; drafter: its adapter tuned further, for acceptance; "
            "joint: all weights, by next-token and diffusion loss.",
            metavar="RECIPE",
        ),
    ] = "frozen",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the recipe, such as rank=64, or of the run where it has no option, such as "
            "warmup_steps=100 (docs/training-keys.md has all); repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Optimiser steps (default {DEFAULT_STEPS}).", metavar="N")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training time, in the place of --steps.", metavar="MIN")
    ] = None,
    synthetic_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens of training text that the model writes itself (default {DEFAULT_SYNTHETIC_TOKENS}, or "
            f"{SYNTHETIC_TOKENS_A_MINUTE} for each of --minutes if that is less).",
            metavar="N",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Your own text: .txt, .txt.xz or .jsonl with texts or messages; may be repeated. With :WEIGHT behind "
            "them, each has its share of --text-tokens.",
            metavar="FILE[:WEIGHT]",
        ),
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Tokens taken from those files.", metavar="N")] = 100_000,
    length: DocumentLengthOption = 320,
    block_lengths: Annotated[
        str,
        typer.Option(
            help="Canvas lengths, parted by commas; training draws from them, and any can be chosen at inference.",
            metavar="N,N",
        ),
    ] = "4,8,16,32",
    batch_documents: Annotated[int, typer.Option(help="Documents in one step.", metavar="N")] = 3,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing",
            help="Run each layer once more on the way back in the place of keeping what is inside: less memory.",
        ),
    ] = False,
    synthesis_rows: SynthesisRowsOption = 256,
    judge_prompts: Annotated[
        int,
        typer.Option(
            "--judge",
            help="Prompts of each kind on which the result is judged at the end; 0 for none. See unmask judge.",
            metavar="N",
            min=0,
        ),
    ] = 1,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Give an autoregressive model a diffusion mode.

    Stop with Ctrl-C and give the same command again to go on.
    """
    from unmask.training.config_file import parse_setting
    from unmask.training.mixture import parse_mixture

    if (count := environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"WORLD_SIZE is {count}, and a conversion is one process",
            "start it without torchrun; unmask train shares out the joint objective",
        )
    if synthetic_tokens is None:
        synthetic_tokens = DEFAULT_SYNTHETIC_TOKENS
        if minutes is not None:
            synthetic_tokens = min(synthetic_tokens, round(SYNTHETIC_TOKENS_A_MINUTE * minutes))
    texts, weights = parse_mixture(text or ())
    settings: dict[str, object] = {
        "model": model,
        "seed": seed,
        "steps": DEFAULT_STEPS if steps is None and minutes is None else steps,
        "minutes": minutes,
        "synthetic_tokens": synthetic_tokens,
        "texts": texts,
        "text_weights": weights,
        "text_tokens": text_tokens,
        "length": length,
        "block_lengths": read_numbers(block_lengths, "--block-lengths", int),
        "batch_documents": batch_documents,
        "synthesis_rows": synthesis_rows,
        "activation_checkpointing": activation_checkpointing,
        "recipe": recipe,
        "dtype": dtype,
    }
    config = _validated(settings, dict(parse_setting(text, "rank=64") for text in set_ or ()))
    from unmask.model.run_checkpoints import last_model
    from unmask.training.conversion import Conversion
    from unmask.training.conversion_config import DrafterRecipe, JointRecipe

    adapter = config.recipe.adapter if isinstance(config.recipe, DrafterRecipe) else "none"
    # What is trained itself is not rounded first.
    stored = "float32" if isinstance(config.recipe, JointRecipe) else dtype
    checkpoint = open_checkpoint(model, adapter=adapter, dtype=stored, device=device, offline=offline)

    conversion = Conversion(config, out, checkpoint)
    measured: list[StepRecord] = []
    with RunBar() as bar:
        conversion.run(lambda event: _show(event, bar, measured))
    del checkpoint, conversion  # a judgement loads the model as others will
    judgement = None
    if judge_prompts:
        from unmask.cli.judge import run_judgement
        from unmask.evaluation.judgement_config import JudgementConfig

        asked = JudgementConfig(str(out), num_prompts=judge_prompts, device=device)
        judgement = run_judgement(asked, out / "judgement", offline=offline, show=not json)
    if json:
        held_out = [asdict(record) for record in measured]
        report = None if judgement is None else judgement.to_json()
        model_folder = last_model(str(out))
        print_json({"folder": str(out), "model": model_folder, "held_out": held_out, "judgement": report})
        return
    print_line(f"the model is {out}: unmask generate {out} PROMPT --mode speculative")


def _validated(options: Mapping[str, object], settings: Mapping[str, object]) -> "ConversionConfig":
    """Return the configuration from options, and from settings of the recipe or of the run where it has no option."""
    from pydantic import ValidationError

    from unmask.training.conversion_config import ConversionConfig

    plain = ConversionConfig.model_fields.keys() - options.keys()
    own = {key: value for key, value in settings.items() if key in plain}
    recipe = {key: value for key, value in settings.items() if key not in plain}
    try:
        return ConversionConfig.model_validate(
            {**options, **own, "recipe": {"name": options["recipe"], **recipe}}
        )
    except ValidationError as error:
        raise _explained(error.errors()[0], sorted(plain)) from error


def _explained(fault: Mapping[str, Any], plain: Sequence[str]) -> UsageError:
    """Return what is wrong with the settings, in the command line's own words; those in `plain` have no option."""
    from unmask.registry import unknown_name
    from unmask.training.conversion_config import RECIPES

    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "union_tag_invalid":
        return unknown_name("recipe", fault["ctx"]["tag"], tuple(RECIPES))
    if place[:1] == ["recipe"]:
        recipe, *place = place[1:]
        if fault["type"] == "extra_forbidden":
            known = (*(key for key in RECIPES[recipe].model_fields if key != "name"), *plain)
            return unknown_name(f"setting of recipe {recipe!r}", place[0], known)
        plain = place
    if place and place[0] in plain:
        return UsageError(f"--set {place[0]}: {fault['msg']}", "see docs/training-keys.md")
    name = "--" + place[0].replace("_", "-") + ": " if place else ""
    return UsageError(f"{name}{fault['msg']}", "see unmask convert --help")


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
