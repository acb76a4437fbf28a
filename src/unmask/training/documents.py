"""Training documents as token ids: written by the model itself, or read from the user's text files."""

import json
import lzma
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unmask.chat_template import Message
from unmask.errors import TrainingError, UsageError
from unmask.tokenizer import Tokenizer

SEPARATOR = "<|doc|>"

LEAST_TOKENS = 32
"""Shorter texts are passed over: there is next to nothing before their canvases."""

Record = str | list[Message]
"""What a file holds of a document: its text, or the messages of a conversation."""


@dataclass(frozen=True)
class Document:
    """Token ids, and the spans ``[begin, end)`` of them that are learnt, in ascending order; the others are given."""

    ids: list[int]
    learnt: tuple[tuple[int, int], ...]

    @classmethod
    def of_text(cls, ids: list[int]) -> "Document":
        """Return a document of which all is learnt but the first token, which nothing comes before."""
        return cls(ids, ((1, len(ids)),))

    @classmethod
    def of_conversation(cls, ids: list[int], answered: Sequence[bool]) -> "Document":
        """Return a document of which the flagged tokens are learnt, but for the first."""
        flags = np.array([False, False, *answered[1 : len(ids)], False])
        edges = np.flatnonzero(flags[1:] != flags[:-1]).tolist()
        return cls(ids, tuple(zip(edges[::2], edges[1::2], strict=True)))

    @property
    def prompt(self) -> list[bool]:
        """Which tokens are given."""
        given = [True] * len(self.ids)
        for begin, end in self.learnt:
            given[begin:end] = [False] * (end - begin)
        return given


def read_texts(path: Path) -> Iterator[str]:
    """Yield the documents of a .txt or .txt.xz file (split at lines `<|doc|>`), or the "text" of each .jsonl line."""
    yield from (record for record in _read(path, lambda row: row["text"]) if isinstance(record, str))


def read_records(path: Path) -> Iterator[Record]:
    """Yield what `read_texts` does, but of a .jsonl line the "messages" where it has any."""

    def record(row: Mapping[str, Any]) -> Record:
        if "messages" not in row:
            return row["text"]  # type: ignore[no-any-return]
        messages = messages_of(row["messages"])
        if messages is None:
            raise ValueError("messages need a role and a content each")
        return messages

    return _read(path, record)


def messages_of(value: object) -> list[Message] | None:
    """Return the messages of a conversation from what a table holds; None where it is none."""
    if not isinstance(value, list | tuple):
        return None
    if not all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    ):
        return None
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _read(path: Path, record: Callable[[Mapping[str, Any]], Record]) -> Iterator[Record]:
    opener: Callable[..., IO[str]] = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            if path.suffix == ".jsonl":
                yield from (record(json.loads(line)) for line in lines if line.strip())
                return
            document: list[str] = []
            for line in lines:
                if line.strip() == SEPARATOR:
                    yield "".join(document)
                    document = []
                else:
                    document.append(line)
            yield "".join(document)
    except (OSError, EOFError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise TrainingError(
            f"cannot read {path}: {error!r}", "give UTF-8 .txt, .txt.xz or .jsonl with a text or messages"
        ) from error


def draw_windows(
    records: Sequence[Record], tokenizer: Tokenizer, length: int, generator: np.random.Generator
) -> Iterator[Document]:
    """Yield a window of up to `length` tokens of each record, in random order, once.

    Of a text it lies at a random place; a conversation is shown from its beginning, for its answers need their
    questions. Texts of fewer than `LEAST_TOKENS` tokens, and conversations without an answer in sight, are passed over.
    """
    for index in generator.permutation(len(records)):
        record = records[index]
        if isinstance(record, str):
            # Only a window's worth of text is tokenised: tokens of 16 characters and more are rare.
            size = 16 * length
            begin = int(generator.integers(max(1, len(record) - size // 4)))
            ids = tokenizer.encode(record[begin : begin + size])[1 if begin else 0 :][:length]
            if len(ids) >= LEAST_TOKENS:
                yield Document.of_text(ids)
        else:
            ids, answered = tokenizer.render_answers(record)
            document = Document.of_conversation(ids[:length], answered)
            if document.learnt:
                yield document


def take_tokens(windows: Iterator[Document], num_tokens: int) -> list[Document]:
    """Return windows until they have `num_tokens` tokens or end."""
    taken: list[Document] = []
    while num_tokens > 0 and (window := next(windows, None)) is not None:
        taken.append(window)
        num_tokens -= len(window.ids)
    return taken


def sample_windows(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    num_tokens: int,
    length: int,
    seed: int,
    weights: Sequence[float] | None = None,
) -> list[Document]:
    """Return about `num_tokens` tokens in windows of up to `length`, one of each document drawn.

    Every file gives the same number of tokens, while it lasts. With `weights` it gives its share of them, up to the
    length of one window, and is gone through again, for other windows, when it is too short.
    """
    generator = np.random.default_rng(seed)
    shares = [1.0] * len(paths) if weights is None else weights
    sampled: list[Document] = []
    for path, share in zip(paths, shares, strict=True):
        records = [record for record in read_records(path) if not isinstance(record, str) or record.strip()]
        left = int(num_tokens * share / sum(shares))
        while left > 0:
            windows = take_tokens(draw_windows(records, tokenizer, length, generator), left)
            sampled += windows
            left -= sum(len(window.ids) for window in windows)
            if weights is None:
                break
            if not windows:
                raise UsageError(
                    f"{path} has nothing to learn from",
                    f"give texts of {LEAST_TOKENS} tokens or more, or answers",
                )
    return sampled


class DocumentFile:
    """A growing .jsonl file of token ids, written in whole batches so that an interrupted run goes on where it was."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size
        self.documents: list[list[int]] = []
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            kept = whole[: len(whole) // batch_size * batch_size]
            self.documents = [json.loads(line) for line in kept]
            os.truncate(path, sum(map(len, kept)))

    @property
    def num_batches(self) -> int:
        return len(self.documents) // self.batch_size

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.documents))

    def fill(
        self, write: Callable[[int], list[list[int]]], num_tokens: int, progress: Callable[[int, int], None]
    ) -> list[list[int]]:
        """Append ``write(batch number)`` until there are `num_tokens`; return all documents."""
        while self.num_tokens < num_tokens:
            batch = write(self.num_batches)
            try:
                with self.path.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(document) + "\n" for document in batch)
                    lines.flush()
                    os.fsync(lines.fileno())
            except OSError as error:
                raise TrainingError(
                    f"cannot write {self.path}: {error}", "free some space and run it again"
                ) from error
            self.documents += batch
            progress(min(self.num_tokens, num_tokens), num_tokens)
        return self.documents
