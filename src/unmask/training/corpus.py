"""Reading a corpus: text files by ourselves, tables and conversations through the `datasets` library."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unmask.errors import TrainingError, UsageError
from unmask.training.documents import Record, messages_of, read_texts

COLUMNS = ("text", "messages")
"""Where a row keeps its document, unless the caller says otherwise: the first of these that it has."""

_TEXT_ENDINGS = (".txt", ".txt.xz")
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def read_corpus(source: str, column: str | None = None) -> Iterator[Record]:
    """Yield the documents of a source in its order, empty ones left out.

    A source is a .txt or .txt.xz file (documents separated by lines `<|doc|>`), a .jsonl, .json or .parquet file, a
    folder of such, or a dataset of the hub, ``org/name``. A row's `column` holds a text, or a list of messages with
    "role" and "content". Raise UsageError for a column that is not there, TrainingError for what cannot be read.
    """
    require_source(source)
    if source.endswith(_TEXT_ENDINGS):
        if column is not None:
            raise UsageError(f"{source} is plain text and has no column {column!r}", "leave out --column")
        yield from (text for text in read_texts(Path(source)) if text.strip())
        return
    if files := _text_files(Path(source)):
        for file in files:
            yield from read_corpus(str(file), column)
        return
    for row in _rows(source):
        record = _record(row, column, source)
        if record:
            yield record


def require_source(source: str) -> None:
    """Raise UsageError for a file or folder that is not there."""
    if not Path(source).exists() and not is_remote(source):
        raise UsageError(
            f"{source} does not exist", "give a file, a folder, or a dataset org/name of the hub"
        )


def is_remote(source: str) -> bool:
    """Say whether a source names a dataset of the hub: no file or folder, and of the form ``org/name``."""
    path = Path(source)
    return not path.exists() and not path.suffix and not path.is_absolute() and len(path.parts) == 2


def _text_files(folder: Path) -> list[Path]:
    """Return the files of a folder that holds plain text alone, at any depth; nothing for any other place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return files if all(path.name.endswith(_TEXT_ENDINGS) for path in files) else []


def _record(row: Mapping[str, Any], column: str | None, source: str) -> Record:
    name = column or next((known for known in COLUMNS if known in row), COLUMNS[0])
    if name not in row:
        usable = [key for key, value in row.items() if isinstance(value, str) or messages_of(value)]
        raise UsageError(
            f"{source} has no column {name!r}",
            f"name one with --column: {', '.join(usable)}"
            if usable
            else "give a table with text or messages",
        )
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, str):
        return value if value.strip() else ""
    messages = messages_of(value)
    if messages is not None:
        return messages
    raise UsageError(
        f"{source}: column {name!r} holds neither text nor messages with a role and a content",
        "name another one with --column",
    )


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    path = Path(source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise TrainingError(
            f"reading {source} needs the library datasets", "pip install 'unmask[train]'"
        ) from error
    builder = _BUILDERS.get(path.suffix)
    try:
        if path.is_file():
            if builder is None:
                endings = ", ".join((*_TEXT_ENDINGS, *_BUILDERS))
                raise UsageError(f"{source} is of no known kind", f"give a file that ends in {endings}")
            rows = load_dataset(builder, data_files=source, split="train", streaming=True)
        else:
            rows = load_dataset(source, split="train", streaming=True)
        yield from rows
    except UsageError:
        raise
    except Exception as error:  # a library over a dozen others: no narrower class holds them all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "check the name and the network" if is_remote(source) else "check that the file is whole"
        raise TrainingError(f"cannot read {source}: {reason}", remedy) from error
