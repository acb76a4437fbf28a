"""``unmask judge``: what a conversion is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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
    QuantizeOption,
    SeedOption,
)
from unmask.cli.judgement_tables import judgement_tables
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json
from unmask.cli.run_bar import RunBar
from unmask.cli.session import prepare_process
from unmask.cli.tables import drawn, print_report

if TYPE_CHECKING:
    from unmask.evaluation.judgement import Judgement
    from unmask.evaluation.judgement_config import JudgementConfig
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
    prompts: NumPromptsOption = 5,
    timed: Annotated[
        int,
        typer.Option(
            help="Of these, so many run alone, for their speeds; the others side by side.", metavar="N"
        ),
    ] = 2,
    diffusion_prompts: Annotated[
        int, typer.Option(help="Of these, so many in mode diffusion, at every threshold.", metavar="N")
    ] = 10,
    max_tokens: MaxTokensOfEachOption = 48,
    blocks: BlockLengthsOption = "8,16",
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
    from unmask.evaluation.judgement_config import JudgementConfig

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
        from unmask.engine.side_by_side import side_by_side
        from unmask.evaluation.judgement import JUDGEMENT_FILE, judge
        from unmask.evaluation.pictures import draw

        judgement = judge(
            config,
            folder,
            bar.follow,
            together=side_by_side,
            offline=offline,
            progress=bar.print,
        )
        bar.show("loading", 1, 1, "")
        pictures = drawn(lambda: draw(judgement, folder), bar)
    if show:
        print_report(judgement_tables(judgement), [folder / JUDGEMENT_FILE, *pictures])
    return judgement


def _default_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    return folder / "judgement" if folder.is_dir() else Path(f"judgement-{folder.name}")
