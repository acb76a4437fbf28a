"""What turns gradients into steps: AdamW, and Muon for the matrices inside the layers."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from unmask.model.continuous import TokenVectors
from unmask.model.transformer import Layer
from unmask.training.config import AdamWTable, MuonTable

_QUINTIC = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


def build_optimizers(model: nn.Module, table: AdamWTable) -> list[Optimizer]:
    """Return the optimisers that share a model's parameters; the learning rate is set before every step.

    Weight decay acts on matrices only, and not on token vectors, whose length is fixed. With a `MuonTable` the matrices
    inside transformer layers go to Muon, while embeddings, the output matrix, norms and biases stay with AdamW.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizers: list[Optimizer] = []
    if isinstance(table, MuonTable):
        inner = {id(parameter) for parameter in _matrices_in_layers(model)}
        hidden = [name for name, parameter in trained.items() if id(parameter) in inner]
        optimizers.append(
            Muon([trained.pop(name) for name in hidden], table.momentum, weight_decay=table.weight_decay)
        )
    free = {id(module.table) for module in model.modules() if isinstance(module, TokenVectors)}
    decayed = [p for p in trained.values() if p.ndim >= 2 and id(p) not in free]
    others = [p for p in trained.values() if p.ndim < 2 or id(p) in free]
    groups = [
        {"params": decayed, "weight_decay": table.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizers.append(AdamW([group for group in groups if group["params"]], betas=table.betas))
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Give every parameter this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


class Muon(Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves by about the same amount (Jordan et al. 2024).

    Updates are scaled by ``0.2 sqrt(max(rows, columns))``, which gives them the root mean square of AdamW's, so that
    both take the same learning rate and weight decay (Liu et al. 2025, arXiv 2502.16982, section 2.2). Unlike torch's
    own, it works in the precision of the parameters and on whole matrices: a model sharded over several processes
    takes the same steps as one that is not.
    """

    def __init__(self, parameters: list[nn.Parameter], momentum: float, *, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum: Tensor = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov's look ahead
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(_on_whole_matrix(ahead), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix close to 1, between about 0.7 and 1.2, and keep its singular vectors.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024, whose slope at zero is steep enough to lift small
    singular values in five rounds; it ends near 1 and not at it, which serves as well.
    """
    a, b, c = _QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _on_whole_matrix(matrix: Tensor) -> Tensor:
    """Orthogonalise a matrix, gathering it first where each process holds some of its rows."""
    if not isinstance(matrix, DTensor):
        return orthogonalise(matrix)
    return distribute_tensor(orthogonalise(matrix.full_tensor()), matrix.device_mesh, matrix.placements)


def _matrices_in_layers(model: nn.Module) -> Iterable[nn.Parameter]:
    for layer in model.modules():
        if isinstance(layer, Layer):
            yield from (parameter for parameter in layer.parameters() if parameter.ndim == 2)
