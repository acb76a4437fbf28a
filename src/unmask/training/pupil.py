"""What a conversion trains: an adapter beside a frozen model, or the whole model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unmask.config import AdapterConfig
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.errors import UsageError
from unmask.model.adapter import Adapter
from unmask.model.catalogue import CARD_FILE, ModelCard
from unmask.model.checkpoint import Checkpoint, save_checkpoint
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch
from unmask.training.blocks import BlockConfig
from unmask.training.conversion_config import DrafterRecipe, FrozenRecipe, JointRecipe
from unmask.training.documents import Document
from unmask.training.frozen_objective import BatchLoss, ObjectiveConfig, conversion_loss
from unmask.training.initialisation import widened
from unmask.training.loss import optimised
from unmask.training.objectives import NoiseConfig, Objective
from unmask.training.soft_targets import AcceptanceLoss
from unmask.training.streams import Cuts


class Pupil(ABC):
    """What is trained: the parameters of `module`, which `denoiser` runs."""

    module: nn.Module
    denoiser: Denoiser

    @abstractmethod
    def loss(
        self, documents: Sequence[Document], generator: np.random.Generator, progress: float
    ) -> BatchLoss:
        """Score documents; `progress` in [0, 1) of the run is done."""

    @abstractmethod
    def write(self, folder: Path, *, name: str, base: str, block_lengths: Sequence[int]) -> None:
        """Write what can be loaded as a model called `name` to a new folder."""


class AdapterPupil(Pupil):
    """The adapter of a frozen model."""

    def __init__(
        self,
        recipe: FrozenRecipe | DrafterRecipe,
        checkpoint: Checkpoint,
        block_lengths: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        transformer = checkpoint.transformer.requires_grad_(False)
        card = checkpoint.card
        mask = transformer.config.vocab_size if card.mask_token_id is None else card.mask_token_id
        embeddings = transformer.embed.weight.float()
        if isinstance(recipe, FrozenRecipe):
            shape = AdapterConfig(recipe.rank, recipe.alpha, recipe.targets)
            self.adapter = Adapter.initialise(transformer.config, shape, embeddings, generator, mask)
            blocks = BlockConfig(block_lengths, recipe.drafting_share)
            self.objective = ObjectiveConfig(
                blocks, recipe.draft_decay, recipe.label_share, recipe.teacher_temperature
            )
            logit_shift = recipe.logit_shift
        else:
            if checkpoint.adapter is not None:
                if asked := [name for name in ("rank", "alpha") if getattr(recipe, name) is not None]:
                    raise UsageError(
                        f"recipe 'drafter': the adapter of {card.name} has its own {' and '.join(asked)}",
                        "leave it out, or convert by recipe 'frozen'",
                    )
                self.adapter = checkpoint.adapter.float().requires_grad_(True).train()
            elif mask < len(embeddings):  # a joint model, which denoises by itself
                plain = AdapterConfig()
                shape = AdapterConfig(recipe.rank or plain.rank, recipe.alpha or plain.alpha)
                self.adapter = Adapter.initialise(transformer.config, shape, embeddings, generator, mask)
            else:
                raise UsageError(
                    f"recipe 'drafter': {card.name} has no adapter to tune",
                    "convert it by recipe 'frozen' first",
                )
            acceptance = AcceptanceLoss(recipe.support, recipe.temperature, recipe.eta)
            blocks = BlockConfig(block_lengths, recipe.drafting_share)
            self.objective = ObjectiveConfig(blocks, 1.0, recipe.label_share, acceptance=acceptance)
            logit_shift = card.logit_shift
        self.adapter = self.adapter.to(transformer.device)
        self.card = card
        self.module = self.adapter
        self.denoiser = Denoiser(transformer, self.adapter, mask, logit_shift=logit_shift)

    def loss(
        self, documents: Sequence[Document], generator: np.random.Generator, progress: float
    ) -> BatchLoss:
        return conversion_loss(self.denoiser, documents, self.objective, generator)

    def write(self, folder: Path, *, name: str, base: str, block_lengths: Sequence[int]) -> None:
        self.adapter.save(folder, base=base, dtype=torch.bfloat16)
        card = replace(
            _served(self.card, self.denoiser),
            name=name,
            base=base,
            block_length=self.card.block_length or max(block_lengths),
        )
        (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")


class JointPupil(Pupil):
    """A whole model, in float32, of which the clean stream stays an autoregressive model."""

    def __init__(
        self, recipe: JointRecipe, checkpoint: Checkpoint, block_lengths: tuple[int, ...], *, autocast: bool
    ) -> None:
        base, size = checkpoint.transformer, checkpoint.transformer.config.vocab_size
        mask = size if checkpoint.card.mask_token_id is None else checkpoint.card.mask_token_id
        transformer = widened(base, max(size, mask + 1), untie=recipe.untie_embeddings).to(base.device)
        self.recipe, self.checkpoint, self.autocast = recipe, checkpoint, autocast
        process = Masked(size, mask, Linear())
        self.module = transformer
        self.denoiser = Denoiser(transformer, mask_token_id=mask, logit_shift=False, process=process)
        noise = NoiseConfig(
            process,
            Cuts(block_lengths, random_phase=True),
            weight=recipe.diffusion_weight,
            complementary=recipe.complementary,
            end_token_id=checkpoint.tokenizer.eos_id,
        )
        self.joint = Objective(self.denoiser, True, noise)
        self.next_token = Objective(self.denoiser, True, None)

    def loss(
        self, documents: Sequence[Document], generator: np.random.Generator, progress: float
    ) -> BatchLoss:
        device = self.denoiser.transformer.device
        bounds = np.cumsum([0, *(len(document.ids) for document in documents)]).tolist()
        tokens = torch.tensor([token for document in documents for token in document.ids], device=device)
        # Of a text its first token is the prompt, so one of the model's own ends as an answer does.
        prompt = torch.tensor([given for document in documents for given in document.prompt], device=device)
        batch = Batch(tokens, tuple(bounds), prompt)
        noise = torch.Generator().manual_seed(int(generator.integers(2**63)))
        objective = self.next_token if progress < self.recipe.next_token_share else self.joint
        with self._arithmetic():
            losses = objective(batch, noise)
        nothing = torch.empty(0)
        return BatchLoss(optimised(losses) / batch.num_scored, nothing, nothing, len(tokens))

    def write(self, folder: Path, *, name: str, base: str, block_lengths: Sequence[int]) -> None:
        card = replace(
            _served(self.checkpoint.card, self.denoiser),
            name=name,
            description=f"{self.checkpoint.card.name}, converted by the joint recipe",
            base=base,
            block_length=max(block_lengths),
        )
        save_checkpoint(Checkpoint(self.denoiser.transformer, self.checkpoint.tokenizer, card), folder)

    def _arithmetic(self) -> AbstractContextManager[object]:
        device = self.denoiser.transformer.device.type
        return torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext()


def _served(card: ModelCard, denoiser: Denoiser) -> ModelCard:
    """Return a base's card with the means to diffuse."""
    return replace(
        card,
        mask_token_id=denoiser.mask_token_id,
        logit_shift=denoiser.logit_shift,
        sources=(),
        source=None,
        adapter=None,
    )
