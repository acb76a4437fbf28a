"""``unmask judge``: what a conversion is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    OfflineFlag,
    OptionalModel,
    QuantizeOption,
    SeedOption,
)
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json, print_note
from unmask.cli.run_bar import RunBar
from unmask.cli.session import prepare_process
from unmask.cli.tables import add_row, new_table, print_tables, shown
from unmask.errors import FailureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unmask.decoding.generation import Generation
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options
    from unmask.evaluation.average import Average
    from unmask.evaluation.judgement import Judgement, JudgementConfig
    from unmask.evaluation.trials import Scores
    from unmask.model.checkpoint import Precision
    from unmask.model.quantize import Quantisation


def judge(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report; what was measured there is not measured again (default: judgement in the "
            "model's folder, or judgement-MODEL here).",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(help="Prompts of each of the six kinds, 40 at most.", metavar="N")
    ] = 5,
    timed: Annotated[
        int,
        typer.Option(
            help="Of these, so many run alone, for their speeds; the others side by side.", metavar="N"
        ),
    ] = 2,
    diffusion_prompts: Annotated[
        int, typer.Option(help="Of these, so many in mode diffusion, at every threshold.", metavar="N")
    ] = 10,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write for each.", metavar="N")] = 48,
    blocks: Annotated[str, typer.Option(help="Block lengths, parted by commas.", metavar="N,N")] = "8,16",
    thresholds: Annotated[
        str,
        typer.Option(help="Thresholds of mode diffusion, parted by commas.", metavar="P,P"),
    ] = "0.9,0.7,0.5",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Held-out text: .txt, .txt.xz or .jsonl; may be repeated (default: the prompts themselves).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    text_tokens: Annotated[
        int, typer.Option(help="Tokens taken from each of those files.", metavar="N")
    ] = 8192,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with another adapter: a folder, or 'untrained'.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="What the model was before (default: what its card names, or the model without its adapter).",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    adapter: AdapterOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Report what a converted model writes and predicts beside the one it was made from.

    All is greedy, and every forward is counted. Stop with Ctrl-C and give the same command again to go on.
    """
    block_lengths = read_numbers(blocks, "--blocks", int)
    cuts = read_numbers(thresholds, "--thresholds", float)
    from unmask.evaluation.judgement import JudgementConfig

    config = JudgementConfig(
        model=model,
        adapter=adapter,
        base=base,
        against=against,
        num_prompts=prompts,
        num_timed=timed,
        num_diffusion=diffusion_prompts,
        max_tokens=max_tokens,
        block_lengths=block_lengths,
        thresholds=cuts,
        texts=tuple(str(path) for path in text or []),
        text_tokens=text_tokens,
        seed=seed,
        dtype=cast("Precision", dtype),  # which load checks
        quantize=cast("Quantisation | None", quantize),
        device=device,
    )
    judgement = run_judgement(config, out or _default_folder(model), offline=offline, show=not json)
    if json:
        print_json(judgement.to_json())


def run_judgement(config: "JudgementConfig", folder: Path, *, offline: bool, show: bool) -> "Judgement":
    """Judge a model into `folder`, with a bar on the way, and show the tables if wanted."""
    with RunBar() as bar:
        bar.show("loading", 0, None, "")
        prepare_process()
        from unmask.evaluation.judgement import JUDGEMENT_FILE, judge
        from unmask.evaluation.pictures import draw

        judgement = judge(
            config,
            folder,
            bar.follow,
            together=_decode_together,
            offline=offline,
            progress=bar.print,
        )
        bar.show("loading", 1, 1, "")
        try:
            pictures = draw(judgement, folder)
        except FailureError as error:
            pictures = []
            bar.print(f"no pictures: {error}")
    if show:
        tables = (_text_table, _speculation_table, _agreement_table, _kinds_table)
        print_tables(*(table(judgement) for table in tables))
        print_note(f"written: {', '.join(str(path) for path in (folder / JUDGEMENT_FILE, *pictures))}")
    return judgement


def _decode_together(
    model: "LanguageModel", requests: "Sequence[tuple[Sequence[int], Options]]"
) -> "Sequence[Generation]":
    """Decode requests in one engine, with pages enough for all that run at once."""
    from unmask.engine.engine import DEFAULT_MAX_REQUESTS, DEFAULT_PAGE_SIZE, Engine

    longest = max(len(prompt) + options.max_tokens for prompt, options in requests)
    num_pages = DEFAULT_MAX_REQUESTS * (longest // DEFAULT_PAGE_SIZE + 2)
    return Engine(model.denoiser, model.tokenizer, num_pages=num_pages).generate(requests)


def _default_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    return folder / "judgement" if folder.is_dir() else Path(f"judgement-{folder.name}")


def _text_table(judgement: "Judgement") -> Table:
    table = new_table("held-out text", "text", "tokens", "law", "perplexity", "bits per byte")
    for score in judgement.texts:
        laws = {"base": score.base, "ar": score.ar, **score.bounds}
        known = {law: likelihood for law, likelihood in laws.items() if likelihood is not None}
        for place, (law, likelihood) in enumerate(known.items()):
            bound = "≤ " if law in score.bounds else ""
            add_row(
                table,
                *(("", "") if place else (Path(score.source).name, f"{score.num_tokens:,}")),
                law,
                f"{bound}{likelihood.perplexity.mean:.2f}",
                f"{bound}{likelihood.bits_per_byte}",
            )
    checks = [score.is_unchanged for score in judgement.texts if score.is_unchanged is not None]
    if checks:
        table.caption = (
            "next-token logits: those of the base, bit for bit"
            if all(checks)
            else "next-token logits: not those of the base"
        )
        table.caption_justify = "left"
    return table


def _speculation_table(judgement: "Judgement") -> Table:
    first = judgement.settings[0].overall
    table = new_table(
        f"the same text in fewer forwards: {first.num_prompts} prompts, ± standard error over prompts",
        *("setting", "tokens/cycle", "tokens/forward", "tokens/s", "x ar", "text of ar"),
    )
    for scores in judgement.settings:
        overall = scores.overall
        if overall.agreement is None:
            add_row(
                table,
                scores.setting.name,
                shown(_per_cycle(overall)),
                shown(overall.tokens_per_forward),
                "" if overall.tokens_per_s is None else f"{overall.tokens_per_s:.1f}",
                "" if overall.speed_over_ar is None else f"{overall.speed_over_ar:.2f}",
                f"{overall.num_equal_to_ar} of {overall.num_prompts}",
            )
    return table


def _agreement_table(judgement: "Judgement") -> Table:
    table = new_table(
        "share of tokens as in mode ar",
        *("setting", "tokens/forward", "up to a difference", "overall", "text of ar"),
    )
    for scores in judgement.settings:
        overall, agreement = scores.overall, scores.overall.agreement
        if agreement is not None:
            add_row(
                table,
                scores.setting.name,
                shown(overall.tokens_per_forward),
                str(agreement.before_difference),
                str(agreement.overall),
                f"{overall.num_equal_to_ar} of {overall.num_prompts}",
            )
    return table


def _kinds_table(judgement: "Judgement") -> Table:
    kinds = list(judgement.settings[0].kinds)
    table = new_table("by kind of prompt: tokens per cycle, else per forward", "setting", *kinds)
    for scores in judgement.settings:
        values = [_per_cycle(scores.kinds[kind]) or scores.kinds[kind].tokens_per_forward for kind in kinds]
        add_row(
            table, scores.setting.name, *("" if value is None else f"{value.mean:.2f}" for value in values)
        )
    return table


def _per_cycle(scores: "Scores") -> "Average | None":
    return None if scores.acceptance is None else scores.acceptance.tokens_per_cycle
