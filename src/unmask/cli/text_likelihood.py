"""How probable a model finds texts: what ``unmask eval --text`` does."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from unmask.cli.output import print_json, print_note
from unmask.cli.run_bar import RunBar
from unmask.cli.tables import add_row, new_table, print_tables, with_error
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options
    from unmask.evaluation.continuations import LikelihoodKind
    from unmask.evaluation.text_likelihood import TextReport


def read_files(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return the documents of each file that have any text; UsageError for a file without, or given twice."""
    from unmask.training.documents import read_texts

    texts: dict[str, list[str]] = {}
    for path in paths:
        if str(path) in texts:
            raise UsageError(f"--text {path} was given twice", "leave one out")
        texts[str(path)] = [text for text in read_texts(path) if text.strip()]
        if not texts[str(path)]:
            raise UsageError(f"{path} holds no text", "give another file")
    return texts


def measure_texts(
    model: "LanguageModel",
    texts: dict[str, list[str]],
    out: Path | None,
    options: "Options",
    *,
    likelihood: "LikelihoodKind | None",
    window: int | None,
    limit: int | None,
    json: bool,
) -> None:
    """Measure texts, with a bar on the way, and print what was found; without `out` nothing else is kept."""
    from unmask.evaluation.text_likelihood import text_likelihood

    with RunBar() as bar, ExitStack() as stack:
        folder = out or Path(stack.enter_context(TemporaryDirectory()))
        report = text_likelihood(
            model,
            texts,
            folder,
            options,
            likelihood=likelihood,
            window=window,
            limit=limit,
            observe=bar.follow,
        )
    if json:
        print_json(asdict(report))
        return
    _print_report(report, model.checkpoint.card.name)
    if out is not None:
        print_note(f"every window, and the report: {out}")


def _print_report(report: "TextReport", model: str) -> None:
    table = new_table(
        f"{model} by {report.likelihood}: {report.law}",
        *("text", "windows", "tokens", "bytes", "nats/token", "bits/byte"),
    )
    for text in report.texts if len(report.texts) == 1 else (*report.texts, report.total):
        found = text.likelihood
        counts = (f"{count:,}" for count in (text.num_windows, text.num_tokens, text.num_bytes))
        add_row(
            table, text.source, *counts, with_error(found.nats_per_token), with_error(found.bits_per_byte)
        )
    print_tables(table)
