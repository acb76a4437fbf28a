"""A model that learns: from random weights or another model's, by an objective, to become a checkpoint."""

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
from unmask.errors import UsageError
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import NO_ADAPTER, Checkpoint, load_checkpoint, save_checkpoint
from unmask.model.conditioning import Conditioning
from unmask.model.denoiser import Denoiser
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer
from unmask.training.config import (
    AutoregressiveTable,
    BaseModelTable,
    DiffusionTable,
    JointTable,
    NewModelTable,
    TrainingConfig,
)
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
class Learner:
    """A model and the way it is trained, sampled and exported. `recipe` is its form for the trainer."""

    network: Network
    denoiser: Denoiser
    objective: Objective
    card: ModelCard
    tokenizer: Tokenizer

    @classmethod
    def new(cls, config: TrainingConfig, tokenizer: Tokenizer) -> "Learner":
        """Return a model to train on tokens of `tokenizer`: with random weights, or those of the config's base.

        The mask token, where the process has one, takes a place of its own after the vocabulary, unless the base has
        one already. Raise UsageError for a process, schedule, time sampling or base that nobody knows, or a base with
        another vocabulary.
        """
        table = config.objective
        generator = torch.Generator().manual_seed(config.run.seed)
        base = _load_base(config.model.base, tokenizer) if isinstance(config.model, BaseModelTable) else None
        size = tokenizer.vocab_size if base is None else base.transformer.config.vocab_size
        noise = None if isinstance(table, AutoregressiveTable) else _noise(table, size, base)
        mask = None if noise is None else noise.process.mask_token_id
        num_rows = size if mask is None else max(size, mask + 1)
        transformer = _transformer(config, base, num_rows, generator)
        conditioning = None
        if isinstance(table, DiffusionTable) and (table.time_conditioning or table.self_conditioning):
            conditioning = Conditioning.initialise(
                transformer.config.hidden_size,
                generator,
                time=table.time_conditioning,
                belief=table.self_conditioning,
            )
        denoiser = Denoiser(
            transformer,
            mask_token_id=mask,
            logit_shift=False,
            predicts_next=isinstance(table, AutoregressiveTable | JointTable),
            full_attention=noise is not None and noise.cuts is None,
            process=None if noise is None else noise.process,
            conditioning=conditioning,
        )
        objective = Objective(denoiser, denoiser.predicts_next, noise)
        card = _card(config, denoiser, noise, tokenizer, base)
        return cls(Network(transformer, conditioning), denoiser, objective, card, tokenizer)

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.network, self.objective, self.sample, self.export)

    def sample(self, step: int) -> str:
        """Return a text that begins from nothing."""
        start = self.tokenizer.eos_id
        assert start is not None  # shards need one
        mode: Mode = "ar" if self.denoiser.predicts_next else "diffusion"
        options = Options(
            mode=mode,
            block_length=None if mode == "ar" else self.card.block_length,
            temperature=1.0,
            max_tokens=min(_SAMPLE_TOKENS, self.card.context_length - 1),
            seed=step,
            stop_token_ids=(start,),
        )
        return generate(self.denoiser, self.tokenizer, [start], options).text

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


def _transformer(
    config: TrainingConfig, base: Checkpoint | None, num_rows: int, generator: torch.Generator
) -> Transformer:
    if isinstance(config.model, NewModelTable):
        shape = config.model.transformer(num_rows, max_positions=config.data.length + 1)
        return random_transformer(shape, generator)
    assert base is not None
    return widened(base.transformer, num_rows, untie=config.model.untie_embeddings)


def widened(transformer: Transformer, vocab_size: int, *, untie: bool = False) -> Transformer:
    """Return a trainable copy in float32 with `vocab_size` tokens; new ones start as the mean of the others.

    `untie`: give the output matrix weights of its own, which start as the embeddings.
    """
    config = replace(
        transformer.config,
        vocab_size=vocab_size,
        tie_embeddings=transformer.config.tie_embeddings and not untie,
    )
    state = {name: tensor.float().clone() for name, tensor in transformer.state_dict().items()}
    if untie:
        state["head.weight"] = transformer.head_weight.float().clone()
    for name in state.keys() & {"embed.weight", "head.weight"}:
        table = state[name]
        state[name] = torch.cat([table, table.mean(0).expand(vocab_size - len(table), -1)])
    with torch.device("meta"):
        wide = Transformer(config)
    wide.load_state_dict(state, assign=True)
    return wide.requires_grad_(True).train()


def _load_base(source: str, tokenizer: Tokenizer) -> Checkpoint:
    base = load_checkpoint(source, adapter=NO_ADAPTER)
    if base.tokenizer.backend.to_str() != tokenizer.backend.to_str():
        raise UsageError(
            f"the shards were not made with the tokenizer of {source}",
            f"make them with: unmask data --tokenizer {source}",
        )
    return base


def _noise(table: DiffusionTable, vocab_size: int, base: Checkpoint | None) -> NoiseConfig:
    mask = None if base is None else base.card.mask_token_id
    process = build_process(
        table.process, vocab_size, vocab_size if mask is None else mask, SCHEDULES.parse(table.schedule)
    )
    is_joint = isinstance(table, JointTable)
    cuts = None
    if is_joint or table.block_lengths:
        cuts = Cuts(table.block_lengths, random_phase=table.random_phase)
    return NoiseConfig(
        process,
        cuts,
        times=TIMES.get(table.times)(),
        weighting=table.weighting,
        complementary=table.complementary,
        belief_share=_BELIEF_SHARE if table.self_conditioning else 0.0,
        weight=table.diffusion_weight if isinstance(table, JointTable) else 1.0,
    )


def _card(
    config: TrainingConfig,
    denoiser: Denoiser,
    noise: NoiseConfig | None,
    tokenizer: Tokenizer,
    base: Checkpoint | None,
) -> ModelCard:
    """Return what one must know to decode with the model."""
    table = config.objective
    if isinstance(config.model, NewModelTable):
        card = ModelCard(
            name="model",
            family="qwen3" if config.model.qk_norm else "llama",
            licence="unknown",
            description=f"trained from scratch with the objective {table.name}",
            context_length=config.data.length + 1,
            stop_token_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        )
    else:
        assert base is not None
        card = replace(
            base.card,
            name="model",
            description=f"{base.card.name}, trained further with the objective {table.name}",
            sources=(),
            source=None,
            adapter=None,
        )
    card = replace(
        card,
        mask_token_id=denoiser.mask_token_id,
        logit_shift=denoiser.logit_shift,
        predicts_next=denoiser.predicts_next,
    )
    if noise is None or isinstance(table, AutoregressiveTable):
        return card
    return replace(
        card,
        block_length=max(table.block_lengths, default=config.data.length),
        attention="full" if denoiser.full_attention else "causal",
        process=table.process,
        schedule=table.schedule,
    )
