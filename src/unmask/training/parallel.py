"""The processes that train one model together, each with a share of its weights and of every batch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from unmask.errors import UsageError
from unmask.model.transformer import Layer


@dataclass(frozen=True)
class Workers:
    """The `count` processes of a run, of which this is number `rank`, and the device that it computes on.

    Every method is called by all processes in the same order. With one process they cost nothing.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and does the talking."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, in double precision."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def any(self, *, flag: bool) -> bool:
        """Say whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def from_first(self, value: float) -> float:
        """Return the first process's value."""
        return self.sum([value if self.is_first else 0.0])[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def shard(self, module: nn.Module) -> nn.Module:
        """Share out, in place, a module's parameters, and with them gradients and optimiser state (FSDP2).

        The module and its parts run under `gathered` only. Going back through a layer averages its gradients over the
        processes, so all of them must go back through the same layers equally often.
        """
        if self.count > 1:
            mesh = init_device_mesh(self.device.type, (self.count,))
            for layer in [inner for inner in module.modules() if isinstance(inner, Layer)]:
                fully_shard(layer, mesh=mesh, reshard_after_forward=False)
            fully_shard(module, mesh=mesh, reshard_after_forward=False).set_reshard_after_backward(False)
        return module

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        """Give every process all parameters of a sharded module for a while.

        All at once and not layer by layer, since an objective may run the model once more in one process than in
        another: for self-conditioning, or for a longer sample. Waiting for each other at every layer they would hang.
        """
        parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()


def whole_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole copies, in main memory, of tensors that may be shared out."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()
        for name, tensor in weights.items()
    }


@contextmanager
def joined_workers(device: str) -> Iterator[Workers]:
    """Join the processes that torchrun started, or be the only one; leave them at the end.

    Of several CUDA processes on a machine each takes a GPU of its own. Raise UsageError when there are too few.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers(torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} has no GPU, there are {torch.cuda.device_count()}",
                "start as many processes as GPUs",
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Workers(place, dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
