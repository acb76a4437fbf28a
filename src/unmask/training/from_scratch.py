"""Models trained from scratch: random weights, an objective, and the checkpoint they become."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.decoding.generate import generate
from unmask.decoding.options import Mode, Options
from unmask.diffusion.process import build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.diffusion.times import TIMES
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import Checkpoint, save_checkpoint
from unmask.model.conditioning import Conditioning
from unmask.model.denoiser import Denoiser
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer
from unmask.training.config import AutoregressiveTable, DiffusionTable, JointTable, TrainingConfig
from unmask.training.initialisation import random_transformer
from unmask.training.objectives import NoiseConfig, Objective
from unmask.training.recipe import Recipe
from unmask.training.streams import Cuts

_BELIEF_SHARE = 0.5
_SAMPLE_TOKENS = 128


class Network(nn.Module):
    """All that is trained: the transformer, and the ports of the denoiser where it has any."""

    def __init__(self, transformer: Transformer, conditioning: Conditioning | None) -> None:
        super().__init__()
        self.transformer, self.conditioning = transformer, conditioning


@dataclass(frozen=True)
class FromScratch:
    """A random model and the way it is trained, sampled and exported. `Recipe` is its form for the trainer."""

    network: Network
    denoiser: Denoiser
    objective: Objective
    card: ModelCard
    tokenizer: Tokenizer

    @classmethod
    def new(cls, config: TrainingConfig, tokenizer: Tokenizer) -> "FromScratch":
        """Return a model with random weights; raise UsageError for a process, schedule or time sampling nobody knows.

        The mask token, where the process has one, takes a place of its own after the tokenizer's vocabulary.
        """
        table, size = config.objective, tokenizer.vocab_size
        noise = None if isinstance(table, AutoregressiveTable) else _noise(table, size)
        mask = None if noise is None else noise.process.mask_token_id
        generator = torch.Generator().manual_seed(config.run.seed)
        transformer = random_transformer(config.transformer(size + (mask is not None)), generator)
        conditioning = None
        if isinstance(table, DiffusionTable) and (table.time_conditioning or table.self_conditioning):
            conditioning = Conditioning.initialise(
                config.model.hidden_size,
                generator,
                time=table.time_conditioning,
                belief=table.self_conditioning,
            )
        denoiser = Denoiser(
            transformer,
            mask_token_id=mask,
            logit_shift=False,
            predicts_next=isinstance(table, AutoregressiveTable | JointTable),
            conditioning=conditioning,
        )
        objective = Objective(denoiser, denoiser.predicts_next, noise)
        card = _card(config, denoiser, noise, tokenizer)
        return cls(Network(transformer, conditioning), denoiser, objective, card, tokenizer)

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.network, self.objective, self.sample, self.export)

    def sample(self, step: int) -> str:
        """Return a text that begins from nothing."""
        start = self.tokenizer.eos_id
        assert start is not None  # shards need one
        mode: Mode = "ar" if self.denoiser.predicts_next else "diffusion"
        length = min(_SAMPLE_TOKENS, self.card.context_length - 1)
        options = Options(mode=mode, temperature=1.0, max_tokens=length, seed=step)
        resolved = options.resolve(block_length=self.card.block_length, stop_token_ids=(start,))
        return generate(self.denoiser, self.tokenizer, [start], resolved).text

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write these weights, by their names in the network, as a checkpoint that `unmask.load` reads."""
        with torch.device("meta"):
            ports = self.network.conditioning
            config = self.network.transformer.config
            network = Network(
                Transformer(config),
                None
                if ports is None
                else Conditioning(
                    config.hidden_size, time=ports.time is not None, belief=ports.belief is not None
                ),
            )
        network.load_state_dict(dict(weights), assign=True)
        checkpoint = Checkpoint(
            network.transformer, self.tokenizer, self.card, conditioning=network.conditioning
        )
        save_checkpoint(checkpoint, folder)


def _noise(table: DiffusionTable, vocab_size: int) -> NoiseConfig:
    process = build_process(table.process, vocab_size, vocab_size, SCHEDULES.parse(table.schedule))
    is_joint = isinstance(table, JointTable)
    cuts = Cuts(() if table.block_length is None else (table.block_length,))
    return NoiseConfig(
        process,
        cuts if is_joint or table.block_length is not None else None,
        times=TIMES.get(table.times)(),
        weighting=table.weighting,
        belief_share=_BELIEF_SHARE if table.self_conditioning else 0.0,
        weight=table.diffusion_weight if isinstance(table, JointTable) else 1.0,
    )


def _card(
    config: TrainingConfig, denoiser: Denoiser, noise: NoiseConfig | None, tokenizer: Tokenizer
) -> ModelCard:
    """Return what one must know to decode with the model."""
    table = config.objective
    card = ModelCard(
        name="model",
        family="qwen3" if config.model.qk_norm else "llama",
        licence="unknown",
        description=f"trained from scratch with the objective {table.name}",
        context_length=config.data.length + 1,
        mask_token_id=denoiser.mask_token_id,
        logit_shift=denoiser.logit_shift,
        predicts_next=denoiser.predicts_next,
        stop_token_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
    )
    if noise is None or isinstance(table, AutoregressiveTable):
        return card
    return replace(
        card,
        block_length=table.block_length or config.data.length,
        attention="full" if noise.cuts is None else "causal",
        process=table.process,
        schedule=table.schedule,
    )
