"""The diffusion adapter: low-rank updates and a mask embedding, both for canvas tokens only."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unmask.config import LINEAR_NAMES, AdapterConfig, TransformerConfig
from unmask.errors import CheckpointError
from unmask.layout import Layout

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MASK_FILE = "mask_embedding.safetensors"

_PEFT_NAMES = {
    name: f"{'mlp' if name in ('gate', 'up', 'down') else 'self_attn'}.{name}_proj" for name in LINEAR_NAMES
}


class Adapter(nn.Module):
    """LoRA on named linear maps of every layer, and the embedding of the mask token.

    It touches canvas tokens alone, so the causal stream stays the base model, bit for bit.
    """

    def __init__(self, config: TransformerConfig, adapter_config: AdapterConfig) -> None:
        super().__init__()
        self.config = adapter_config
        self.mask_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: LowRank(*config.linear_shape(name), adapter_config) for name in adapter_config.targets}
            )
            for _ in range(config.num_layers)
        )

    @classmethod
    def initialise(
        cls,
        config: TransformerConfig,
        adapter_config: AdapterConfig,
        embeddings: Tensor,
        generator: torch.Generator,
        mask_token_id: int | None = None,
    ) -> "Adapter":
        """Start where the base model stands: B = 0, and the mask embedding is the mean of the (V, D) `embeddings`.

        `mask_token_id`: one among them has its own embedding.
        """
        adapter = cls(config, adapter_config)
        has_mask = mask_token_id is not None and mask_token_id < len(embeddings)
        with torch.no_grad():
            adapter.mask_embedding.copy_(embeddings[mask_token_id] if has_mask else embeddings.mean(0))
            for low_rank in adapter.modules():
                if isinstance(low_rank, LowRank):
                    bound = 1 / math.sqrt(low_rank.down.shape[1])
                    low_rank.down.uniform_(-bound, bound, generator=generator)
        return adapter

    def deltas(self, layout: Layout) -> list["LayerDelta"] | None:
        """Return each layer's updates for the adapter tokens of a layout, or `None` when it has none."""
        indices = torch.from_numpy(layout.adapter_mask).nonzero()[:, 0]
        if not len(indices):
            return None
        first, last = int(indices[0]), int(indices[-1]) + 1
        rows: slice | Tensor = indices.to(self.mask_embedding.device)
        if last - first == len(indices):
            rows = slice(first, last)
        return [LayerDelta(layer, rows, layout.num_tokens) for layer in self.layers]  # type: ignore[arg-type]

    def save(self, folder: Path, *, base: str, dtype: torch.dtype = torch.float32) -> None:
        """Write PEFT's file layout, and the mask embedding beside it; `base` names the model it belongs to."""
        weights = {
            f"base_model.model.model.layers.{index}.{_PEFT_NAMES[name]}.lora_{letter}.weight": tensor.to(
                dtype
            )
            for index, layer in enumerate(self.layers)
            for name, low_rank in layer.items()  # type: ignore[operator]
            for letter, tensor in (("A", low_rank.down.detach()), ("B", low_rank.up.detach()))
        }
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": [f"{name}_proj" for name in self.config.targets],
        }
        contents = {
            WEIGHTS_FILE: save(
                {name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"}
            ),
            MASK_FILE: save({"mask_embedding": self.mask_embedding.detach().to(dtype)}),
            CONFIG_FILE: (json.dumps(described, indent=2) + "\n").encode(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path, config: TransformerConfig) -> "Adapter":
        """Read a folder that `save` wrote; raise CheckpointError when a file is missing, broken or of another model."""
        try:
            described = json.loads((folder / CONFIG_FILE).read_text())
            weights = load_file(folder / WEIGHTS_FILE)
            mask = load_file(folder / MASK_FILE)["mask_embedding"]
            targets = {module.removesuffix("_proj") for module in described["target_modules"]}
            ordered = tuple(name for name in LINEAR_NAMES if name in targets)
            adapter_config = AdapterConfig(int(described["r"]), float(described["lora_alpha"]), ordered)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            remedy = "give a folder with the files of an adapter"
            raise CheckpointError(f"adapter {folder}: {error}", remedy) from error
        adapter = cls(config, adapter_config)
        state = {"mask_embedding": mask}
        for index, layer in enumerate(adapter.layers):
            for name in layer:  # type: ignore[attr-defined]
                prefix = f"base_model.model.model.layers.{index}.{_PEFT_NAMES[name]}"
                for letter, own in (("A", "down"), ("B", "up")):
                    tensor = weights.pop(f"{prefix}.lora_{letter}.weight", torch.empty(0))
                    state[f"layers.{index}.{name}.{own}"] = tensor
        wrong = [key for key, own in adapter.state_dict().items() if own.shape != state[key].shape]
        if wrong or weights:
            raise CheckpointError(
                f"adapter {folder}: does not fit the model at {(wrong or sorted(weights))[0]}"
            )
        adapter.load_state_dict({key: value.float() for key, value in state.items()})
        return adapter


class LowRank(nn.Module):
    """``scale * up(down(x))``: down (rank, in), up (out, rank)."""

    def __init__(self, in_size: int, out_size: int, config: AdapterConfig) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(config.rank, in_size))
        self.up = nn.Parameter(torch.zeros(out_size, config.rank))
        self.scale = config.scale

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y + scale * up(down(x))``: x (n, in), y (n, out) -> (n, out)."""
        inner = F.linear(x, self.down.to(x.dtype))
        return torch.addmm(y, inner, self.up.to(x.dtype).t(), alpha=self.scale)


@dataclass(frozen=True)
class LayerDelta:
    """One layer's low-rank updates and the packed rows they apply to."""

    layer: nn.ModuleDict
    rows: slice | Tensor  # a slice where the adapter's tokens lie in one piece
    num_tokens: int

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Return `y` (N, out) with the update of linear map `name` on `x` (N, in) added on the adapter's rows."""
        if name not in self.layer:
            return y
        low_rank = self.layer[name]
        if self.rows == slice(0, self.num_tokens):
            return low_rank.add(x, y)  # type: ignore[operator, no-any-return]
        changed = y.clone()
        changed[self.rows] = low_rank.add(x[self.rows], y[self.rows])  # type: ignore[operator]
        return changed
