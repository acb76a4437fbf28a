"""One process's share of a transformer and of its adapter: some heads and inner units of every layer.

Queries, keys, values, gate and up are split by their outputs, the other two maps by their inputs, whose results are
summed over the processes: twice a layer (Megatron-LM, arXiv 1909.08053). Embeddings and output matrix are not split.
Weights are handed out by PyTorch's distributed tensors.
"""

import copy
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from unmask.config import TransformerConfig
from unmask.errors import UsageError
from unmask.model.adapter import Adapter, LowRank
from unmask.model.transformer import RMSNorm, Transformer

_PLACES = {
    **{name: f"attention.{name}" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}" for name in ("gate", "up", "down")},
}
_BY_INPUTS = ("o", "down")


def shared_config(config: TransformerConfig, num_processes: int) -> TransformerConfig:
    """Return the shape of what one process has; raises UsageError for what cannot be shared out evenly."""
    names = ("num_heads", "num_kv_heads", "intermediate_size")
    for name in names:
        if getattr(config, name) % num_processes:
            given = f"{name}={getattr(config, name)} of this model"
            raise UsageError(f"{given} cannot be shared out evenly over {num_processes} processes")
    return replace(config, **{name: getattr(config, name) // num_processes for name in names})


class SharedTransformer(Transformer):
    """This process's share of a transformer; the first process's weights are what all get their shares of.

    `config` is that of the share, so that caches made for it hold its heads.
    """

    def __init__(self, source: Transformer, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)  # without the parameters of a whole one
        self.config = shared_config(source.config, mesh.size())
        self.embed, self.norm, self.head = source.embed, source.norm, source.head
        self.layers = nn.ModuleList(_share_layer(layer, mesh) for layer in source.layers)


class SharedAdapter(Adapter):
    """This process's share of an adapter; as of transformers."""

    def __init__(self, source: Adapter, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)  # without the parameters of a whole one
        self.config, self.mask_embedding = source.config, source.mask_embedding
        self.layers = nn.ModuleList(_share_updates(layer, mesh) for layer in source.layers)


class SharedLinear(nn.Module):
    """This process's share of a linear map: of its outputs, or (`sums`) of its inputs, with the results summed."""

    def __init__(self, source: nn.Linear, mesh: DeviceMesh, *, sums: bool) -> None:
        super().__init__()
        self.sums = sums
        self.weight = _part(source.weight, mesh, Shard(1) if sums else Shard(0))
        self.bias = (
            None if source.bias is None else _part(source.bias, mesh, Replicate() if sums else Shard(0))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out), this process's share of one of them."""
        if not self.sums:
            return F.linear(x, self.weight, self.bias)
        y = F.linear(x, self.weight)
        dist.all_reduce(y)
        return y if self.bias is None else y + self.bias


class SharedLowRank(LowRank):
    """This process's share of the update of a linear map that is split likewise."""

    def __init__(self, source: LowRank, mesh: DeviceMesh, *, sums: bool) -> None:
        nn.Module.__init__(self)
        self.scale, self.sums = source.scale, sums
        self.down = _part(source.down, mesh, Shard(1) if sums else Replicate())
        self.up = _part(source.up, mesh, Replicate() if sums else Shard(0))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y + scale * up(down(x))``: x (n, in), y (n, out), this process's share of one of them."""
        inner = F.linear(x, self.down.to(x.dtype))
        if self.sums:
            dist.all_reduce(inner)
        return torch.addmm(y, inner, self.up.to(x.dtype).t(), alpha=self.scale)


def _share_layer(layer: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Return this process's share of the first process's layer."""
    shared = copy.deepcopy(layer)
    for name, place in _PLACES.items():
        whole = shared.get_submodule(place)
        assert isinstance(whole, nn.Linear)
        shared.set_submodule(place, SharedLinear(whole, mesh, sums=name in _BY_INPUTS))
    for module in shared.modules():
        if isinstance(module, RMSNorm):
            dist.broadcast(module.weight.data, 0)
    return shared


def _share_updates(layer: nn.Module, mesh: DeviceMesh) -> nn.ModuleDict:
    """Return this process's share of the first process's updates of a layer."""
    shared = nn.ModuleDict()
    for name, update in layer.named_children():
        assert isinstance(update, LowRank)
        shared[name] = SharedLowRank(update, mesh, sums=name in _BY_INPUTS)
    return shared


def _part(tensor: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    """Return this process's part of the first process's tensor."""
    part = distribute_tensor(tensor.detach(), mesh, [placement]).to_local()
    return nn.Parameter(part, requires_grad=False)
