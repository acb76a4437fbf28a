"""``unmask demo``: one prompt in three modes, side by side."""

import platform
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    MaxTokensOption,
    OfflineFlag,
    OptionalModel,
    RuleOption,
)
from unmask.cli.output import print_json, print_line, progress_line
from unmask.cli.request import decoding_options
from unmask.cli.session import open_model, read_prompt, settle_threads
from unmask.cli.view import play, tokens_per_second

if TYPE_CHECKING:
    from unmask.decoding.generation import Generation
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options

PROMPT = "Write a short paragraph about why rivers matter to cities."

_WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class Run:
    """One mode's generation, and whether it wrote what mode 'ar' wrote."""

    generation: "Generation"
    equals_ar: bool

    @property
    def rate(self) -> float | None:
        return tokens_per_second(self.generation)


def demo(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    prompt: Annotated[
        str, typer.Option(help="What to answer, '-' for standard input.", metavar="TEXT")
    ] = PROMPT,
    max_tokens: MaxTokensOption = 128,
    block_length: BlockLengthOption = None,
    rule: RuleOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Answer one prompt in all three modes, greedily, and compare forwards and speed."""

    def options(mode: str) -> "Options":
        return decoding_options(
            mode=mode,
            rule=rule if mode == "diffusion" else None,
            block_length=None if mode == "ar" else block_length,
            max_tokens=max_tokens,
        )

    prompt = read_prompt(prompt, None)
    modes = [options(mode) for mode in ("ar", "diffusion", "speculative")]
    language_model = open_model(model, adapter=adapter, dtype=dtype, device=device, offline=offline)
    settle_threads(device)
    runs = _runs(language_model, prompt, modes)
    if json:
        print_json(_report(model, dtype, device, prompt, runs))
        return
    print_line(f"{model} on {device}, {dtype}, greedy\n\n> {prompt}\n")
    for run in runs:
        mode = run.generation.mode
        same = mode != "ar" and run.equals_ar
        print_line(f"[{mode}]\n{'(the same text, token for token)' if same else run.generation.text}\n")
    Console(highlight=False).print(_table(runs))


def _runs(model: "LanguageModel", prompt: str, modes: "list[Options]") -> list[Run]:
    runs: list[Run] = []
    with progress_line() as progress:
        for options in modes:
            progress(f"writing in mode {options.mode}")
            # The first forwards of a process pay for memory and code that later ones find ready.
            play(model.stream(prompt, replace(options, max_tokens=min(_WARM_UP_TOKENS, options.max_tokens))))
            generation = play(model.stream(prompt, options))
            first = runs[0].generation if runs else generation
            runs.append(Run(generation, equals_ar=generation.token_ids == first.token_ids))
    return runs


def _table(runs: list[Run]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("mode")
    for heading in ("tokens", "forwards", "decode forwards", "TPF", "tokens/s", "same as ar"):
        table.add_column(heading, justify="right")
    for run in runs:
        one = run.generation
        table.add_row(
            one.mode,
            str(one.num_tokens),
            str(one.num_forwards),
            str(one.num_decode_forwards),
            _number(one.tokens_per_forward, 2),
            _number(run.rate, 1),
            Text("-" if one.mode == "ar" else "yes" if run.equals_ar else "no"),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _report(model: str, dtype: str, device: str, prompt: str, runs: list[Run]) -> dict[str, object]:
    import torch

    from unmask import __version__

    return {
        "model": model,
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"unmask": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "prompt": prompt,
        "runs": [
            {**asdict(run.generation), "tokens_per_second": run.rate, "equals_ar": run.equals_ar}
            for run in runs
        ],
    }
