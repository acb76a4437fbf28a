"""GGUF files: read once, dequantised to float32, and kept as a folder in the hub's layout."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from unmask.errors import CheckpointError
from unmask.model.families import FAMILIES
from unmask.model.family import GGUF_NAMES, PLAIN, Family
from unmask.model.gguf_tokenizer import read_tokenizer
from unmask.tokenizer import Tokenizer

Array = npt.NDArray[np.float32]

_SHAPE_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
}
_ROPE_KEYS = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "attention.temperature_scale": "llama_4_scaling_beta",
}
_OTHER_KEYS = (
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
)
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every published Llama 3 has; a GGUF file stores only what follows from it, one divisor per frequency."""


@dataclass(frozen=True)
class GgufFile:
    """One GGUF file: its metadata by key, its tensors by llama.cpp's names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Map a file and read its metadata; raise CheckpointError when it is missing, truncated or no GGUF file."""
        try:
            reader = gguf.GGUFReader(path)
            metadata = {key: _plain(part.contents()) for key, part in reader.fields.items()}
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is truncated or no GGUF file: {error}", "fetch it again"
            ) from error
        return cls(path, metadata, {tensor.name: tensor for tensor in reader.tensors})

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, the prefix of its keys."""
        return str(self.metadata.get("general.architecture"))

    @cached_property
    def family(self) -> Family:
        """The family that reads this architecture."""
        families = [FAMILIES.get(name) for name in FAMILIES.names()]
        family = next((family for family in families if self.architecture in family.gguf), None)
        if family is None:
            known = ", ".join(sorted(name for family in families for name in family.gguf))
            raise CheckpointError(
                f"{self.path}: GGUF architecture {self.architecture!r} is not supported",
                f"supported: {known}",
            )
        return family

    def hub_config(self) -> dict[str, Any]:
        """Return the config.json this file would have on the hub; refuse by name what has no place there."""
        prefix = f"{self.architecture}."
        own = {
            key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)
        }
        for key, value in own.items():
            if key not in {*_SHAPE_KEYS, *_ROPE_KEYS, *_OTHER_KEYS} and value:
                raise CheckpointError(f"{self.path}: {prefix}{key}={value!r} is not supported")
        config: dict[str, Any] = {"model_type": self.family.gguf[self.architecture]}
        config |= {name: own[key] for key, name in _SHAPE_KEYS.items() if key in own}
        config.setdefault("sliding_window", None)
        if "attention.key_length" not in own and "rope.dimension_count" in own:
            config["head_dim"] = own["rope.dimension_count"]
        for key in ("rope.dimension_count", "attention.value_length"):
            if (size := own.get(key, config.get("head_dim"))) != config.get("head_dim"):
                raise CheckpointError(
                    f"{self.path}: {prefix}{key}={size} unlike the head size is not supported"
                )
        if "token_embd.weight" not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor token_embd.weight")
        config["vocab_size"] = int(self.tensors["token_embd.weight"].shape[-1])
        config["tie_word_embeddings"] = "output.weight" not in self.tensors
        config["attention_bias"] = "blk.0.attn_q.bias" in self.tensors
        config["rope_parameters"] = self._rope(own)
        config["torch_dtype"] = "float32"
        for key in ("bos", "eos"):
            config[f"{key}_token_id"] = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return config

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer inside."""
        return read_tokenizer(self.metadata, origin=str(self.path))

    def hub_names(self) -> dict[str, str]:
        """Return hub name -> llama.cpp's name of every tensor; refuse by name what has no place there."""
        modules = {theirs: ours for ours, theirs in GGUF_NAMES.items()}
        names: dict[str, str] = {}
        for name in sorted(self.tensors.keys() - {"rope_freqs.weight"}):  # that one is read by `_rope`
            module, _, kind = name.rpartition(".")
            layer = re.match(r"blk\.(\d+)\.", module)
            ours = modules.get(re.sub(r"^blk\.\d+\.", "blk.{i}.", module))
            if ours is None or kind not in ("weight", "bias"):
                raise CheckpointError(f"{self.path}: tensor {name} is not supported")
            names[PLAIN.hub_name(f"{ours.format(i=layer[1]) if layer else ours}.{kind}")] = name
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> Array:
        """Dequantise one tensor to float32, with the rows of q and k back in the hub's order."""
        tensor = self.tensors[name]
        try:
            weights: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name}: {error}") from error
        for kind, heads in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
            if self.family.gguf_turned and re.fullmatch(rf"blk\.\d+\.{kind}\.(weight|bias)", name):
                # llama.cpp rotates neighbours (2i, 2i+1), the hub's models rotate halves (i, i + K/2).
                num_heads = self.metadata[f"{self.architecture}.attention.{heads}"]
                pairs = weights.reshape(num_heads, -1, 2, *weights.shape[1:])
                weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        return np.ascontiguousarray(weights, dtype=np.float32)

    def _rope(self, own: Mapping[str, Any]) -> dict[str, Any]:
        rope = {name: own[key] for key, name in _ROPE_KEYS.items() if key in own}
        kind = rope.get("rope_type", "linear" if "factor" in rope else "none")  # as llama.cpp has it
        rope["rope_type"] = "default" if kind == "none" else kind
        if scale := own.get("rope.scaling.yarn_log_multiplier"):
            rope["mscale"] = rope["mscale_all_dim"] = scale
        if "rope_freqs.weight" in self.tensors:
            rope |= {"rope_type": "llama3", **_LLAMA3_ROPE}
            divisors = self.read("rope_freqs.weight")
            rope["factor"] = float(divisors.max())
            if not np.allclose(divisors, _llama3_divisors(rope, len(divisors)), rtol=1e-4):
                raise CheckpointError(f"{self.path}: rope_freqs.weight other than Llama 3's is not supported")
        if rope["rope_type"] == "default":
            rope = {key: rope[key] for key in ("rope_type", "rope_theta") if key in rope}
        return rope


def write_hub_folder(source: GgufFile, folder: Path) -> None:
    """Write a GGUF file's model into `folder` in the hub's layout, float32 throughout."""
    config = source.hub_config()
    source.tokenizer().save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = source.hub_names()
    shapes = {hub: source.shape(name) for hub, name in names.items()}
    _write_safetensors(folder / "model.safetensors", shapes, lambda hub: source.read(names[hub]))


def _write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Array]
) -> None:
    """Write float32 tensors one at a time, so that a model larger than memory passes through.

    The format: the header's length (8 bytes), the header (JSON), the tensors. The header is padded with spaces so that
    the first tensor, and with it every one of a usual size, begins on a cache line when the file is mapped.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(read(name).astype("<f4", copy=False).data)


def _llama3_divisors(rope: Mapping[str, Any], count: int) -> Array:
    """Return by how much Llama 3's scaling divides each of `count` frequencies, as llama.cpp's converter writes it."""
    frequencies = rope.get("rope_theta", 10_000.0) ** -(np.arange(count) / count)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - blend) / rope["factor"] + blend), dtype=np.float32)


def _plain(value: Any) -> Any:
    # A float32 in the file means the number somebody wrote, 1e-05, and not the nearest double to what is stored.
    return float(str(np.float32(value))) if isinstance(value, float) else value
