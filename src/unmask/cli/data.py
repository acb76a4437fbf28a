"""``unmask data``: tokenise a corpus once, for every training run on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import DebugFlag, JsonFlag, OfflineFlag, SeedOption
from unmask.cli.output import print_json, print_line, print_note
from unmask.cli.run_bar import RunBar

if TYPE_CHECKING:
    from unmask.training.shards import Manifest


def data(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the shards.")],
    *,
    text: Annotated[
        list[str],
        typer.Option(
            help="A .txt or .txt.xz file (documents parted by lines <|doc|>), a .jsonl, .json or .parquet file, "
            "a folder of such, or a dataset org/name of the hub; may be repeated. With :WEIGHT behind them, each has "
            "its share of the tokens of an epoch.",
            metavar="SOURCE[:WEIGHT]",
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="bytes, bpe:SIZE (learnt from the text), or a folder or model that has one.", metavar="NAME"
        ),
    ] = "bpe:4096",
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that holds the text, or the messages of a conversation (default: text, else "
            "messages).",
            metavar="NAME",
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the documents that is kept out of training.", metavar="SHARE")
    ] = 0.01,
    seed: SeedOption = 0,
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Turn text into token shards, which unmask train reads.

    Some documents are held out, once and for all runs on the shards.
    """
    from unmask.cli.session import prepare_process

    prepare_process()
    from unmask.training.mixture import parse_mixture
    from unmask.training.preparation import PreparationConfig, prepare

    sources, weights = parse_mixture(text)
    config = PreparationConfig(sources, tokenizer, column, held_out, seed, weights)
    with RunBar() as bar:
        shards = prepare(
            config,
            out,
            lambda event: bar.show(
                event.stage,
                event.num_documents,
                None,
                f"{event.num_documents:,} documents, {event.num_tokens:,} tokens",
            ),
            offline=offline,
            say=print_note,
        )
    if json:
        print_json({"folder": str(out), **shards.manifest.model_dump(mode="json")})
        return
    for line in _lines(shards.manifest):
        print_line(line)
    if shards.manifest.num_unanswered:
        print_line(f"left out: {shards.manifest.num_unanswered:,} conversations without an answer")
    print_line(f"the shards are in {out}: name it as data.folder of unmask train")


def _lines(manifest: "Manifest") -> list[str]:
    return [
        f"{name}: {split.num_documents:,} documents, {split.num_tokens:,} tokens, {split.num_bytes:,} bytes"
        for name, split in manifest.splits.items()
    ]
