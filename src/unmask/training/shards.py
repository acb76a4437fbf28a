"""Token shards: a corpus as memory-mapped arrays of token ids, written once and read by every run."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from unmask.errors import TrainingError, UsageError
from unmask.tokenizer import Tokenizer
from unmask.training.config import Count, Table

MANIFEST_FILE = "dataset.json"
TOKENIZER_FOLDER = "tokenizer"

SHARD_TOKENS = 2**26

SplitName = Literal["train", "held_out"]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_REMEDY = "make it again with unmask data"


class ShardEntry(Table):
    """One file of tokens; `digest` is the BLAKE2b of its ids, and of the prompts' bits where there are any.

    `prompt_file`: a bit for each token that is given, eight to a byte; none where all are learnt.
    """

    file: str
    num_tokens: Count
    digest: str
    prompt_file: str | None = None


class SplitEntry(Table):
    """The documents of one split; `num_tokens` counts an end token for each, `num_bytes` their UTF-8 text.

    `source_documents`: how many are of each source, in a mixture.
    """

    num_documents: Count
    num_tokens: Count
    num_bytes: Count
    documents_file: str
    shards: tuple[ShardEntry, ...]
    source_documents: tuple[Count, ...] | None = None


class Manifest(Table):
    """What a folder of shards holds, and what it was made from.

    `weights`: the sources' shares of the tokens that training sees, where they are a mixture. `num_unanswered`:
    conversations without an answer, which were left out.
    """

    format: Literal[1] = 1
    sources: tuple[str, ...]
    tokenizer: str
    vocab_size: int
    end_token_id: int
    held_out_share: float
    seed: int
    splits: dict[SplitName, SplitEntry]
    weights: tuple[float, ...] | None = None
    num_unanswered: Count = 0


class SplitWriter:
    """Writes one split, a shard at a time; a document never crosses from one shard into the next."""

    def __init__(
        self, folder: Path, name: SplitName, *, vocab_size: int, end_token_id: int, shard_tokens: int
    ) -> None:
        self.folder, self.name, self.end_token_id = folder, name, end_token_id
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.shard_tokens = shard_tokens
        self.num_tokens = 0
        self._ends, self._sizes = array("q"), array("q")
        self._buffer: list[npt.NDArray[np.unsignedinteger]] = []
        self._prompts: list[BoolArray] = []
        self._buffered = 0
        self._shards: list[ShardEntry] = []

    def add(self, ids: Sequence[int], num_bytes: int, prompt: Sequence[bool] | None = None) -> None:
        """Append a document's tokens and an end token; `num_bytes` is the length of its text.

        `prompt`: which of them are given, the end token included; none without.
        """
        if self._buffered and self._buffered + len(ids) + 1 > self.shard_tokens:
            self._flush()
        self._buffer.append(np.array([*ids, self.end_token_id], dtype=self.dtype))
        self._prompts.append(np.array([False] * (len(ids) + 1) if prompt is None else prompt, dtype=np.bool_))
        self._buffered += len(ids) + 1
        self.num_tokens += len(ids) + 1
        self._ends.append(self.num_tokens)
        self._sizes.append(num_bytes)

    @property
    def num_documents(self) -> int:
        return len(self._ends)

    def finish(self, source_documents: Sequence[int] | None = None) -> SplitEntry:
        """Write what is left and return the split's entry in the manifest."""
        if self._buffer:
            self._flush()
        documents = np.stack([np.array(self._ends), np.array(self._sizes)], axis=1).astype("<i8")
        file = f"{self.name}-documents.npy"
        _write(self.folder / file, documents)
        return SplitEntry(
            num_documents=len(documents),
            num_tokens=self.num_tokens,
            num_bytes=sum(self._sizes),
            documents_file=file,
            shards=tuple(self._shards),
            source_documents=None if source_documents is None else tuple(source_documents),
        )

    def _flush(self) -> None:
        tokens, prompt = np.concatenate(self._buffer), np.concatenate(self._prompts)
        name = f"{self.name}-{len(self._shards):05d}"
        file, prompt_file = f"{name}.npy", None
        _write(self.folder / file, tokens)
        digest = hashlib.blake2b(tokens.data, digest_size=16)
        if prompt.any():
            prompt_file = f"{name}-prompt.npy"
            bits = np.packbits(prompt)
            _write(self.folder / prompt_file, bits)
            digest.update(bits.data)
        self._shards.append(
            ShardEntry(file=file, num_tokens=len(tokens), digest=digest.hexdigest(), prompt_file=prompt_file)
        )
        self._buffer, self._prompts, self._buffered = [], [], 0


@dataclass(frozen=True)
class Split:
    """The documents of one split as one long run of tokens, each document closed by an end token.

    `ends`: (documents,) where each document ends in the run; `sizes`: (documents,) bytes of its text. `prompts`: for
    each shard the packed bits of the tokens that are given, or None. `source_ends`: of a mixture, (sources,) where each
    source ends in the run.
    """

    shards: tuple[npt.NDArray[np.unsignedinteger], ...]
    ends: IntArray
    sizes: IntArray
    prompts: tuple[npt.NDArray[np.uint8] | None, ...] = ()
    source_ends: IntArray | None = None

    @cached_property
    def bounds(self) -> IntArray:
        """Where each shard begins in the run, and the end of the last: (shards + 1,)."""
        return np.cumsum([0, *map(len, self.shards)], dtype=np.int64)

    def read(self, begin: int, end: int) -> IntArray:
        """Return tokens ``[begin, end)`` of the run, which must lie in one document."""
        shard, first = self._shard_of(begin)
        return self.shards[shard][begin - first : end - first].astype(np.int64)

    def log_frequencies(self, vocab_size: int) -> npt.NDArray[np.float64]:
        """Return the log-probability of each token, (vocab_size,); each is counted once more than it is there."""
        counts = np.ones(vocab_size)
        for shard in self.shards:
            counts += np.bincount(shard, minlength=vocab_size)
        frequencies: npt.NDArray[np.float64] = np.log(counts / counts.sum())
        return frequencies

    @property
    def has_prompts(self) -> bool:
        return any(bits is not None for bits in self.prompts)

    def read_prompt(self, begin: int, end: int) -> BoolArray:
        """Return which of the tokens ``[begin, end)``, which must lie in one shard, are given."""
        shard, first = self._shard_of(begin)
        bits = self.prompts[shard] if self.prompts else None
        if bits is None:
            return np.zeros(end - begin, dtype=np.bool_)
        byte = (begin - first) // 8
        flags = np.unpackbits(bits[byte : -(-(end - first) // 8)])
        return flags[begin - first - 8 * byte :][: end - begin].astype(np.bool_)

    def _shard_of(self, token: int) -> tuple[int, int]:
        """Return the number of a token's shard, and where that one begins."""
        shard = int(np.searchsorted(self.bounds, token, side="right")) - 1
        return shard, int(self.bounds[shard])


@dataclass(frozen=True)
class Shards:
    """A folder that `unmask data` made; `held_out` is None where nothing was held out."""

    folder: Path
    manifest: Manifest
    train: Split
    held_out: Split | None

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Map a folder's files; raise TrainingError, naming the file, when one is missing or not whole."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise UsageError(f"{folder} holds no {MANIFEST_FILE}", "make the shards with unmask data")
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise TrainingError(f"{path} cannot be read: {str(error).splitlines()[0]}", _REMEDY) from error
        splits = {name: _open_split(folder, entry) for name, entry in manifest.splits.items()}
        return cls(folder, manifest, splits["train"], splits.get("held_out"))

    @property
    def identity(self) -> str:
        """A name for the content: the same for the same tokens in the same order."""
        content = self.manifest.model_dump_json(
            include={"splits", "vocab_size", "end_token_id", "weights"}, exclude_none=True
        )
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer that the tokens belong to."""
        return Tokenizer.from_folder(self.folder / TOKENIZER_FOLDER)


def _open_split(folder: Path, entry: SplitEntry) -> Split:
    documents = _map(folder / entry.documents_file, entry.num_documents)
    tokens = tuple(_map(folder / shard.file, shard.num_tokens) for shard in entry.shards)
    prompts = tuple(
        None if shard.prompt_file is None else _map(folder / shard.prompt_file, -(-shard.num_tokens // 8))
        for shard in entry.shards
    )
    ends, sizes = np.ascontiguousarray(documents.T, dtype=np.int64)
    source_ends = None
    if entry.source_documents is not None:
        source_ends = np.array([0, *ends])[np.cumsum(entry.source_documents)]
    return Split(tokens, ends, sizes, prompts, source_ends)


def _write(path: Path, values: npt.NDArray[np.integer]) -> None:
    # Not numpy.save, whose error for a full disk does not say that the disk is full.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.data)


def _map(path: Path, length: int) -> npt.NDArray[np.unsignedinteger]:
    try:
        values: npt.NDArray[np.unsignedinteger] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(f"{path} is missing or cut short: {error}", _REMEDY) from error
    if len(values) != length:
        raise TrainingError(f"{path} holds {len(values)} entries, {MANIFEST_FILE} says {length}", _REMEDY)
    return values
