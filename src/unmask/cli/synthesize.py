"""``unmask synthesize``: a model writes its own training text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    SeedOption,
    SynthesisRowsOption,
    TopKOption,
    TopPOption,
)
from unmask.cli.output import print_json, print_line
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_checkpoint
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.training.synthetic_corpus import CorpusState


def synthesize(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path, typer.Option(help="File to write, .jsonl; an unfinished one is continued.", metavar="FILE")
    ],
    tokens: Annotated[
        int, typer.Option(help="Write until documents of so many tokens are kept.", metavar="N")
    ] = 300_000,
    length: DocumentLengthOption = 320,
    rows: SynthesisRowsOption = 256,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="Temperature of the answers; repeated, documents take turns (default: 0, 0, 0.5, 0.8).",
            metavar="T",
            show_default=False,
        ),
    ] = None,
    free_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens before the answer that are drawn at temperature 1, so that documents differ.",
            metavar="N",
        ),
    ] = 32,
    top_p: TopPOption = 0.95,
    top_k: TopKOption = 64,
    min_words: Annotated[int, typer.Option(help="Drop shorter documents.", metavar="N")] = 20,
    max_repetition: Annotated[
        float,
        typer.Option(help="Drop documents of whose runs of five words more are repeated.", metavar="SHARE"),
    ] = 0.3,
    max_overlap: Annotated[
        float,
        typer.Option(
            help="Drop documents that share more of their runs of five words with those before; 1 drops only copies.",
            metavar="SHARE",
        ),
    ] = 0.5,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep documents in this language alone, say en; may be repeated.",
            metavar="CODE",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Let a model write text to be converted on, with unmask convert --text FILE.

    A chat model invents what users ask, and answers. Stop with Ctrl-C and give the same command again to go on.
    """
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: the file holds JSON lines", "give it the ending .jsonl")
    from unmask.training.selection import SelectionConfig

    selection = SelectionConfig(min_words, max_repetition, max_overlap, tuple(language or ()))
    checkpoint = open_checkpoint(model, adapter="none", dtype=dtype, device=device, offline=offline)
    from unmask.training.synthesis import SynthesisConfig
    from unmask.training.synthetic_corpus import CorpusConfig, SyntheticCorpus

    synthesis = SynthesisConfig(
        length=length,
        batch_size=rows,
        free_tokens=free_tokens,
        temperatures=tuple(temperature or SynthesisConfig.temperatures),
        top_k=top_k,
        top_p=top_p,
    )
    corpus = SyntheticCorpus(CorpusConfig(model, dtype, seed, synthesis, selection), out, checkpoint)
    with RunBar() as bar:
        state = corpus.fill(
            tokens, lambda now: bar.show("writing", min(now.num_tokens, tokens), tokens, _detail(now))
        )
    if json:
        print_json({"file": str(out), **vars(state), "tokens_per_s": _speed(state)})
        return
    dropped = ", ".join(f"{count} {fault}" for fault, count in state.dropped.items())
    print_line(f"{state.num_documents} documents of {state.num_tokens:,} tokens are in {out}")
    print_line(f"{_detail(state)}; dropped: {dropped or 'nothing'}")


def _speed(state: "CorpusState") -> float | None:
    return round(state.num_written / state.seconds, 1) if state.seconds else None


def _detail(state: "CorpusState") -> str:
    speed = _speed(state)
    return f"{state.num_written:,} tokens written" + ("" if speed is None else f", {speed:.0f} a second")
