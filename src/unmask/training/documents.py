"""Training documents as token ids: written by the model itself, or read from the user's text files."""

import json
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from unmask.errors import TrainingError
from unmask.tokenizer import Tokenizer

SEPARATOR = "<|doc|>"

Document = list[int]


def read_texts(path: Path) -> Iterator[str]:
    """Yield the documents of a .txt or .txt.xz file (split at lines `<|doc|>`), or the "text" of each .jsonl line."""
    opener: Callable[..., IO[str]] = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            if path.suffix == ".jsonl":
                yield from (json.loads(line)["text"] for line in lines if line.strip())
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
            f"cannot read {path}: {error!r}", "give UTF-8 .txt, .txt.xz or .jsonl with a text field"
        ) from error


def sample_windows(
    paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, length: int, seed: int
) -> list[Document]:
    """Return about `num_tokens` tokens in windows of up to `length`, one at a random place of each document drawn.

    Every file gives the same number of tokens while it lasts; documents of fewer than 32 tokens are passed over.
    """
    generator = np.random.default_rng(seed)
    windows: list[Document] = []
    for path in paths:
        texts = [text for text in read_texts(path) if text.strip()]
        budget = num_tokens // len(paths)
        for index in generator.permutation(len(texts)):
            if budget <= 0:
                break
            # Only a window's worth of text is tokenised: tokens of 16 characters and more are rare.
            text, size = texts[index], 16 * length
            begin = int(generator.integers(max(1, len(text) - size // 4)))
            ids = tokenizer.encode(text[begin : begin + size])[1 if begin else 0 :][:length]
            if len(ids) >= 32:
                windows.append(ids)
                budget -= len(ids)
    return windows


class DocumentFile:
    """A growing .jsonl file of token ids, written in whole batches so that an interrupted run goes on where it was."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size
        self.documents: list[Document] = []
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
        self, write: Callable[[int], list[Document]], num_tokens: int, progress: Callable[[int, int], None]
    ) -> list[Document]:
        """Append ``write(batch number)`` until there are `num_tokens`; return all documents."""
        while self.num_tokens < num_tokens:
            batch = write(self.num_batches)
            with self.path.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(document) + "\n" for document in batch)
                lines.flush()
                os.fsync(lines.fileno())
            self.documents += batch
            progress(min(self.num_tokens, num_tokens), num_tokens)
        return self.documents
