"""From text to token shards: choose the tokenizer, hold documents out, tokenise once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmask.chat_template import Message
from unmask.errors import UsageError
from unmask.model.catalogue import find_card
from unmask.model.checkpoint import Finder
from unmask.model.store import cache_directory, writing_folder
from unmask.tokenizer import TOKENIZER_FILE, Tokenizer
from unmask.training.corpus import is_remote, read_corpus, require_source
from unmask.training.documents import Record
from unmask.training.shards import (
    MANIFEST_FILE,
    SHARD_TOKENS,
    TOKENIZER_FOLDER,
    Manifest,
    Shards,
    SplitName,
    SplitWriter,
)
from unmask.training.tokenizer_training import byte_tokenizer, train_bpe

_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class PreparationConfig:
    """What is tokenised and how.

    `tokenizer`: "bytes", "bpe:SIZE" (learnt from the training documents), or a folder or model that has one. About
    `held_out_share` of the documents are kept out of training, each by a hash of its text and `seed`: a document that
    occurs twice falls on one side, and adding others moves none. `weights`: of the sources, in a mixture of which
    every epoch of training has these shares of tokens; without, an epoch has all there is.
    """

    sources: tuple[str, ...]
    tokenizer: str
    column: str | None = None
    held_out_share: float = 0.01
    seed: int = 0
    weights: tuple[float, ...] | None = None
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("there is no text", "name some with --text")
        if not 0 <= self.held_out_share < 1:
            raise UsageError(f"--held-out {self.held_out_share}: must lie in [0, 1)")


@dataclass(frozen=True)
class PreparationEvent:
    """Progress for whoever watches: documents and tokens so far; while a tokenizer is learnt there are no tokens."""

    stage: Literal["learning the tokenizer", "tokenising"]
    num_documents: int
    num_tokens: int


Observer = Callable[[PreparationEvent], None]


def prepare(
    config: PreparationConfig, folder: Path, observe: Observer, *, offline: bool, say: Callable[[str], None]
) -> Shards:
    """Write the shards of a corpus as a new folder, whole or not at all, and return them mapped.

    `offline` refuses to fetch datasets and tokenizers; `say` is told what takes long to fetch.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder")
    for source in config.sources:
        require_source(source)
    remote = [source for source in config.sources if is_remote(source)]
    if offline and remote:
        raise UsageError(f"{remote[0]} is a dataset of the hub", "leave out --offline, or give a file")
    with writing_folder(folder, remedy="free some space, or name another folder") as partial:
        tokenizer = _tokenizer(config, observe, offline=offline, say=say)
        end = tokenizer.eos_id
        if end is None:
            raise UsageError(f"the tokenizer {config.tokenizer} names no token that ends a text")
        writers = {
            name: SplitWriter(
                partial,
                name,
                vocab_size=tokenizer.vocab_size,
                end_token_id=end,
                shard_tokens=config.shard_tokens,
            )
            for name in _split_names(config)
        }
        counts = {name: [0] * len(config.sources) for name in writers}
        num_unanswered = 0
        for number, (document, encoded) in enumerate(_tokenised(config, tokenizer, end)):
            if encoded is None:
                num_unanswered += 1
                continue
            writers[document.split].add(encoded.ids, document.num_bytes, encoded.prompt)
            counts[document.split][document.source] += 1
            if number % 256 == 0:
                num_tokens = sum(writer.num_tokens for writer in writers.values())
                observe(PreparationEvent("tokenising", number + 1, num_tokens))
        if config.weights is not None and 0 in counts["train"]:
            name = config.sources[counts["train"].index(0)]
            raise UsageError(f"{name} has no document to train on, and so no share", "leave it out")
        splits = {
            name: writer.finish(None if config.weights is None else counts[name])
            for name, writer in writers.items()
        }
        for name, entry in splits.items():
            if not entry.num_documents:
                raise UsageError(
                    f"no document fell into the split {name!r}",
                    "give more documents (lines `<|doc|>` part those of a text file), or another --held-out",
                )
        (partial / TOKENIZER_FOLDER).mkdir()
        tokenizer.save(partial / TOKENIZER_FOLDER)
        manifest = Manifest(
            sources=config.sources,
            tokenizer=config.tokenizer,
            vocab_size=tokenizer.vocab_size,
            end_token_id=end,
            held_out_share=config.held_out_share,
            seed=config.seed,
            splits=splits,
            weights=config.weights,
            num_unanswered=num_unanswered,
        )
        (partial / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Shards.open(folder)


def _tokenizer(
    config: PreparationConfig, observe: Observer, *, offline: bool, say: Callable[[str], None]
) -> Tokenizer:
    kind, colon, size = config.tokenizer.partition(":")
    if kind == "bytes" and not colon:
        return byte_tokenizer()
    if kind == "bpe":
        if not size.isdecimal():
            raise UsageError(f"tokenizer {config.tokenizer!r} names no size", "write bpe:4096")
        return train_bpe(_training_texts(config, observe), int(size))
    folder = Path(config.tokenizer).expanduser()
    if not (folder / TOKENIZER_FILE).is_file():
        finder = Finder(cache_directory(), offline=offline, progress=say)
        folder, _ = finder.find(config.tokenizer, find_card(config.tokenizer))
    return Tokenizer.from_folder(folder)


def _training_texts(config: PreparationConfig, observe: Observer) -> Iterator[str]:
    """Yield the texts that a tokenizer may learn from: those that are not held out."""
    for number, document in enumerate(_documents(config)):
        if number % 256 == 0:
            observe(PreparationEvent("learning the tokenizer", number + 1, 0))
        if document.split == "train":
            yield from document.texts


@dataclass(frozen=True)
class _Document:
    """A document of source number `source`, on its way into a split."""

    source: int
    split: SplitName
    record: Record

    @property
    def texts(self) -> list[str]:
        return (
            [self.record] if isinstance(self.record, str) else [message["content"] for message in self.record]
        )

    @property
    def num_bytes(self) -> int:
        return sum(len(text.encode("utf-8")) for text in self.texts)


@dataclass(frozen=True)
class _Encoded:
    """Ids without the end token; `prompt`: which of them, and of the end token, are given; none without."""

    ids: list[int]
    prompt: list[bool] | None = None


def _documents(config: PreparationConfig) -> Iterator[_Document]:
    for number, source in enumerate(config.sources):
        for record in read_corpus(source, config.column):
            yield _Document(number, _split_of(record, config), record)


def _split_names(config: PreparationConfig) -> tuple[SplitName, ...]:
    return ("train", "held_out") if config.held_out_share else ("train",)


def _split_of(record: Record, config: PreparationConfig) -> SplitName:
    content = record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)
    key = config.seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "little") < config.held_out_share * 2**64 else "train"


def _tokenised(
    config: PreparationConfig, tokenizer: Tokenizer, end: int
) -> Iterator[tuple[_Document, _Encoded | None]]:
    """Yield each document and what it is encoded as, None for a conversation without an answer."""
    for batch in _batches(_documents(config)):
        plain = [document.record for document in batch if isinstance(document.record, str)]
        encoded = iter(tokenizer.backend.encode_batch_fast(plain, add_special_tokens=False))
        for document in batch:
            if isinstance(document.record, str):
                yield document, _Encoded(next(encoded).ids)
            else:
                yield document, _conversation(document.record, tokenizer, end)


def _conversation(messages: list[Message], tokenizer: Tokenizer, end: int) -> _Encoded | None:
    """Encode a conversation up to its last answer: all but the answers is given."""
    if tokenizer.chat_template is None:
        raise UsageError("the tokenizer has no chat template for the messages", "choose bpe:SIZE or bytes")
    ids, answered = tokenizer.render_answers(messages)
    if True not in answered:
        return None
    length = len(answered) - answered[::-1].index(True)
    ids, given = ids[:length], [not answer for answer in answered[:length]]
    if ids[-1] == end:
        return _Encoded(ids[:-1], given)
    # A template that ends turns with another token has no use for the one that ends a text.
    return _Encoded(ids, [*given, True])


def _batches(documents: Iterator[_Document]) -> Iterator[list[_Document]]:
    """Part documents into batches of about a million characters, which the tokenizer encodes on all cores."""
    batch: list[_Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document.texts))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
