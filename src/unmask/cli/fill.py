"""``unmask fill``: a hole in a text."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    JsonFlag,
    NumStepsOption,
    OfflineFlag,
    RuleOption,
    SamplerOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from unmask.cli.output import print_json, write_text
from unmask.cli.session import open_model, read_prompt, settle_threads
from unmask.errors import UsageError


def fill(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A text with a mark where the hole is, '-' for standard input."),
    ],
    *,
    model: Annotated[
        str, typer.Option(help="Catalogue name, folder, .gguf file or hub id.", metavar="MODEL")
    ] = DEFAULT_MODEL,
    hole: Annotated[
        str,
        typer.Option(
            help="The mark. Where it stands twice, what is between is written anew, in as many tokens unless --length "
            "says how many.",
            metavar="MARK",
        ),
    ] = "<hole>",
    length: Annotated[int | None, typer.Option(help="How many tokens the hole has.", metavar="N")] = None,
    rule: RuleOption = None,
    sampler: SamplerOption = None,
    num_steps: NumStepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Fill a hole in a text, or write a part of it anew, by diffusion: what follows is seen too."""
    text = read_prompt("-", None) if str(file) == "-" else read_prompt(None, file)
    before, span, after = _parted(text, hole)
    if span is None and length is None:
        raise UsageError("how long the hole is cannot be known", "give --length, in tokens")
    language_model = open_model(model, adapter=adapter, dtype=dtype, device=device, offline=offline)
    settle_threads(device)
    num_tokens = length or len(language_model.tokenizer.encode(span or ""))
    generation = language_model.fill(
        before,
        after,
        length=num_tokens,
        rule=rule,
        sampler=sampler,
        num_steps=num_steps,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    whole = before + generation.text + after
    if json:
        print_json({"model": model, "dtype": dtype, "whole": whole, "removed": span, **asdict(generation)})
        return
    write_text(sys.stdout, whole)


def _parted(text: str, mark: str) -> tuple[str, str | None, str]:
    """Return what stands before a hole, in it (nothing where one mark stands for it) and after it."""
    pieces = text.split(mark) if mark else []
    match pieces:
        case [before, after]:
            return before, None, after
        case [before, span, after] if span:
            return before, span, after
    raise UsageError(
        f"{mark!r} stands {max(0, len(pieces) - 1)} times in the text",
        "put it once where the hole is, or around what is to be written anew; another mark: --hole",
    )
