"""From text to token shards: choose the tokenizer, hold documents out, tokenise once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmask.errors import UsageError
from unmask.model.catalogue import find_card
from unmask.model.checkpoint import Finder
from unmask.model.store import cache_directory, writing_folder
from unmask.tokenizer import TOKENIZER_FILE, Tokenizer
from unmask.training.corpus import Record, is_remote, read_corpus
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
    occurs twice falls on one side, and adding others moves none.
    """

    sources: tuple[str, ...]
    tokenizer: str
    column: str | None = None
    held_out_share: float = 0.01
    seed: int = 0
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
        for number, (split, ids, num_bytes) in enumerate(_tokenised(config, tokenizer, end)):
            writers[split].add(ids, num_bytes)
            if number % 256 == 0:
                num_tokens = sum(writer.num_tokens for writer in writers.values())
                observe(PreparationEvent("tokenising", number + 1, num_tokens))
        splits = {name: writer.finish() for name, writer in writers.items()}
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
    for number, (split, record) in enumerate(_documents(config)):
        if number % 256 == 0:
            observe(PreparationEvent("learning the tokenizer", number + 1, 0))
        if split == "train":
            yield from _texts(record)


def _documents(config: PreparationConfig) -> Iterator[tuple[SplitName, Record]]:
    for source in config.sources:
        for record in read_corpus(source, config.column):
            yield _split_of(record, config), record


def _split_names(config: PreparationConfig) -> tuple[SplitName, ...]:
    return ("train", "held_out") if config.held_out_share else ("train",)


def _split_of(record: Record, config: PreparationConfig) -> SplitName:
    content = record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)
    key = config.seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "little") < config.held_out_share * 2**64 else "train"


def _texts(record: Record) -> list[str]:
    return [record] if isinstance(record, str) else [message["content"] for message in record]


def _tokenised(
    config: PreparationConfig, tokenizer: Tokenizer, end: int
) -> Iterator[tuple[SplitName, list[int], int]]:
    """Yield each document's split, its ids without the end token, and the bytes of its text."""
    for batch in _batches(_documents(config)):
        plain = [record for _, record in batch if isinstance(record, str)]
        encoded = iter(tokenizer.backend.encode_batch_fast(plain, add_special_tokens=False))
        for split, record in batch:
            ids = next(encoded).ids if isinstance(record, str) else _conversation(record, tokenizer, end)
            yield split, ids, sum(len(text.encode("utf-8")) for text in _texts(record))


def _conversation(record: Record, tokenizer: Tokenizer, end: int) -> list[int]:
    """Return a conversation in the tokenizer's template, without the tokens that every document gets anyway."""
    assert not isinstance(record, str)
    if tokenizer.chat_template is None:
        raise UsageError("the tokenizer has no chat template for the messages", "choose bpe:SIZE or bytes")
    ids = tokenizer.render_chat(record, add_generation_prompt=False)
    prefix = len(tokenizer.prefix_ids)
    if tuple(ids[:prefix]) == tokenizer.prefix_ids:
        ids = ids[prefix:]
    return ids[:-1] if ids[-1] == end else ids


def _batches(
    documents: Iterator[tuple[SplitName, Record]],
) -> Iterator[list[tuple[SplitName, Record]]]:
    """Part documents into batches of about a million characters, which the tokenizer encodes on all cores."""
    batch: list[tuple[SplitName, Record]] = []
    characters = 0
    for split, record in documents:
        batch.append((split, record))
        characters += sum(map(len, _texts(record)))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
