"""Activation checkpointing changes what is kept, and no gradient."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CONFIG, random_transformer, tiny_checkpoint
from tiny_training import tiny_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser
from unmask.model.transformer import Transformer
from unmask.training.batches import Batch
from unmask.training.conversion_config import FrozenRecipe
from unmask.training.documents import Document
from unmask.training.learner import Learner
from unmask.training.loss import optimised
from unmask.training.objectives import NoiseConfig, Objective
from unmask.training.parallel import Workers
from unmask.training.pupil import AdapterPupil
from unmask.training.run import TrainingRun
from unmask.training.shards import Shards
from unmask.training.streams import Cuts

MASK = CONFIG.vocab_size - 1


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made under it hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return made

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def joint() -> tuple[nn.Module, Callable[[], Tensor]]:
    denoiser = Denoiser(random_transformer(), mask_token_id=MASK, logit_shift=False)
    denoiser.transformer.requires_grad_(True)
    objective = Objective(denoiser, True, NoiseConfig(Masked(MASK, MASK, Linear()), Cuts((4, 8))))
    tokens = torch.randint(MASK, (120,), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, (0, 50, 120))
    return denoiser.transformer, lambda: optimised(objective(batch, torch.Generator().manual_seed(2)))


def frozen() -> tuple[nn.Module, Callable[[], Tensor]]:
    pupil = AdapterPupil(FrozenRecipe(rank=2), tiny_checkpoint(), (4, 8), torch.Generator().manual_seed(0))
    ids = torch.randint(200, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    documents = [Document.of_text(ids[:40]), Document.of_text(ids[40:])]
    pupil.module.train()
    with torch.no_grad():
        for parameter in pupil.module.parameters():
            parameter.add_(0.01)

    def loss() -> Tensor:
        return pupil.loss(documents, np.random.default_rng(3), 0.0).loss

    transformer = pupil.denoiser.transformer
    return nn.ModuleList([pupil.module, transformer]), loss


@pytest.mark.parametrize("make", [joint, frozen])
def test_gradients_are_the_same_and_less_is_kept(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]],
) -> None:
    gradients, peaks = [], []
    for recomputes in (False, True):
        module, loss = make()
        for part in module.modules():
            if isinstance(part, Transformer):
                part.recomputes = recomputes
        with PeakBytes() as peak:
            torch.autograd.backward(loss())
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
        peaks.append(peak.most)
    kept, again = gradients
    assert kept.keys() == again.keys() != set()
    assert all(torch.equal(gradient, again[name]) for name, gradient in kept.items())
    assert any(gradient.abs().sum() > 0 for gradient in kept.values())
    assert peaks[1] < 0.9 * peaks[0]


def test_a_run_says_whether_it_recomputes(shards: Shards) -> None:
    for setting, expected in (("false", False), ("true", True)):
        config = tiny_config(f"run.activation_checkpointing={setting}")
        network = Learner.new(config, shards.tokenizer()).network
        assert network.transformer.recomputes is expected


def test_flex_attention_needs_cuda(shards: Shards, tmp_path: Any) -> None:
    config = tiny_config('run.attention="flex"')
    recipe = Learner.new(config, shards.tokenizer()).recipe
    with pytest.raises(UsageError, match="needs CUDA"):
        TrainingRun(
            config, tmp_path / "run", shards, recipe, Workers(torch.device("cpu")), lambda event: None
        )
