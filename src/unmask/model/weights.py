"""A transformer's weights in the hub's folder layout: config.json, and safetensors in one file or in shards."""

import errno
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unmask.errors import CheckpointError
from unmask.model.families import family_of
from unmask.model.family import Family, Placement
from unmask.model.hub_config import describe
from unmask.model.transformer import Transformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")


def read_transformer(folder: Path, *, dtype: torch.dtype, device: torch.device) -> tuple[Transformer, Family]:
    """Load a folder's model, frozen; weights of this dtype on a CPU stay mapped, and are read as they are used.

    Raise CheckpointError, naming file and tensor, for one that is missing, truncated, unknown or of another shape.
    """
    origin = str(folder / CONFIG_FILE)
    family, described = family_of(read_json(folder / CONFIG_FILE), origin=origin)
    config = family.read_config(described, origin=origin)
    with ExitStack() as stack:
        files = StoredTensors.open(folder, stack)
        placement = family.placement(files.homes)
        if config.tie_embeddings and not _is_tied(files, placement):
            config = replace(config, tie_embeddings=False)
        with torch.device("meta"), _Uninitialised():  # every parameter is replaced below
            transformer = Transformer(config)
        parameters = transformer.state_dict()
        names = {name: placement.hub_name(name) for name in parameters}
        files.check(
            {names[name]: tuple(parameter.shape) for name, parameter in parameters.items()}, family, placement
        )
        state = {name: files.read(hub).to(device=device, dtype=dtype) for name, hub in names.items()}
    transformer.load_state_dict(state, assign=True)
    return transformer.requires_grad_(False).eval(), family


def write_transformer(folder: Path, transformer: Transformer, family: Family) -> None:
    """Write a model's config.json and weights in the hub's layout; raise OSError when it cannot be written."""
    placement = family.placements[0]
    state = {
        placement.hub_name(name): tensor.contiguous() for name, tensor in transformer.state_dict().items()
    }
    described = describe(transformer.config, family.model_types[0])
    described["dtype"] = str(transformer.dtype).removeprefix("torch.")
    try:
        (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # an OSError of the Rust side
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number) if number == errno.ENOSPC else str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise CheckpointError when it is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "give a folder in the hub's layout") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


class _Uninitialised(TorchFunctionMode):
    """Leave out what `torch.nn.init` does: on the meta device it draws nothing and imports a compiler, for a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a folder: which file holds each, and the files, mapped."""

    homes: Mapping[str, Path]
    files: Mapping[Path, Any]

    @classmethod
    def open(cls, folder: Path, stack: ExitStack) -> "StoredTensors":
        """Map the single file, or every shard the index names, until `stack` closes."""
        promised: dict[str, str] = {}
        paths = [folder / WEIGHTS_FILE]
        if (folder / INDEX_FILE).is_file():
            promised = read_json(folder / INDEX_FILE).get("weight_map", {})
            paths = [folder / name for name in sorted(set(promised.values()))]
        elif not paths[0].is_file():
            raise CheckpointError(
                f"{folder} has no {WEIGHTS_FILE}", "only safetensors and GGUF weights are read"
            )
        files = {path: stack.enter_context(_map(path)) for path in paths}
        homes = {name: path for path, file in files.items() for name in file.keys()}  # noqa: SIM118, not a dict
        if broken := sorted(name for name, shard in promised.items() if homes.get(name) != folder / shard):
            raise CheckpointError(
                f"{folder / promised[broken[0]]} has no tensor {broken[0]}, which the index promises"
            )
        return cls(homes, files)

    def check(self, wanted: Mapping[str, tuple[int, ...]], family: Family, placement: Placement) -> None:
        """Raise CheckpointError unless the folder holds the wanted tensors, of these shapes, and nothing unknown."""
        for name, shape in wanted.items():
            if name not in self.homes:
                raise CheckpointError(f"{self._somewhere} has no tensor {name}")
            stored = self.files[self.homes[name]].get_slice(name)
            if tuple(stored.get_shape()) != shape:
                raise CheckpointError(
                    f"{self.homes[name]}: tensor {name} has shape {tuple(stored.get_shape())}, config.json says {shape}"
                )
            if stored.get_dtype() not in _FLOATS:
                raise CheckpointError(
                    f"{self.homes[name]}: tensor {name} is {stored.get_dtype()}, not a plain float"
                )
        for name in sorted(self.homes.keys() - wanted.keys() - {placement.hub_name("head.weight")}):
            if not family.is_ignored(name):
                raise CheckpointError(
                    f"{self.homes[name]}: unknown tensor {name} in a model of family {family.name}"
                )

    def read(self, name: str) -> Tensor:
        """Return one tensor, a view of its mapped file."""
        tensor: Tensor = self.files[self.homes[name]].get_tensor(name)
        return tensor

    @property
    def _somewhere(self) -> Path:
        paths = list(self.files)
        return paths[0] if len(paths) == 1 else paths[0].parent


def _map(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "fetch the missing shard") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: {error}", "fetch it again"
        ) from error


def _is_tied(files: StoredTensors, placement: Placement) -> bool:
    """Say whether a model whose config ties the output matrix to the embeddings has no other one in its file.

    Where config and file disagree, the file is right: multimodal configs say "tied" by default.
    """
    head, embed = placement.hub_name("head.weight"), placement.hub_name("embed.weight")
    return head not in files.homes or (
        embed in files.homes and torch.equal(files.read(head), files.read(embed))
    )
