"""A model that learns: from random weights or another model's, by an objective, to become a checkpoint."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unmask.decoding.generate import generate
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.diffusion.gaussian_schedule import GAUSSIAN_SCHEDULES
from unmask.diffusion.process import build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.diffusion.times import TIMES
from unmask.errors import UsageError
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import NO_ADAPTER, Checkpoint, load_checkpoint, save_checkpoint
from unmask.model.conditioning import Conditioning
from unmask.model.continuous import GAUSSIAN, TokenVectors
from unmask.model.denoiser import Denoiser
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer
from unmask.training.config import (
    AutoregressiveTable,
    BaseModelTable,
    ContinuousTable,
    DiffusionTable,
    DistillTable,
    JointTable,
    NewModelTable,
    ObjectiveTable,
    TrainingConfig,
)
from unmask.training.continuous import ContinuousObjective, FlowEndObjective
from unmask.training.initialisation import random_transformer, widened
from unmask.training.loss import TrainingObjective
from unmask.training.objectives import NoiseConfig, Objective
from unmask.training.recipe import Recipe
from unmask.training.streams import Cuts

FloatArray = npt.NDArray[np.float64]

_BELIEF_SHARE = 0.5
_SAMPLE_TOKENS = 128


class Network(nn.Module):
    """All that is trained: the transformer, and the ports and token vectors of the denoiser where it has any."""

    def __init__(
        self, transformer: Transformer, conditioning: Conditioning | None, vectors: TokenVectors | None
    ) -> None:
        super().__init__()
        self.transformer, self.conditioning, self.vectors = transformer, conditioning, vectors


@dataclass(frozen=True)
class Learner:
    """A model and the way it is trained, sampled and exported. `recipe` is its form for the trainer."""

    network: Network
    denoiser: Denoiser
    objective: TrainingObjective
    card: ModelCard
    tokenizer: Tokenizer

    @classmethod
    def new(
        cls, config: TrainingConfig, tokenizer: Tokenizer, log_frequencies: FloatArray | None = None
    ) -> "Learner":
        """Return a model to train on tokens of `tokenizer`: with random weights, or those of the config's base.

        A continuous model begins with the `log_frequencies` (K,) of tokens, which are alike unless given.
        The mask token, where the process has one, takes a place of its own after the vocabulary, unless the base has
        one already. Raise UsageError for a process, schedule, time sampling or base that nobody knows, or a base with
        another vocabulary.
        """
        table = config.objective
        generator = torch.Generator().manual_seed(config.run.seed)
        base = None
        if isinstance(config.model, BaseModelTable):
            base = _load_base(config.model.base, tokenizer, distilled=isinstance(table, DistillTable))
        size = tokenizer.vocab_size if base is None else base.transformer.config.vocab_size
        noise = _noise(table, size, base, tokenizer.eos_id) if isinstance(table, DiffusionTable) else None
        mask = None if noise is None else noise.process.mask_token_id
        num_rows = size if mask is None else max(size, mask + 1)
        transformer = _transformer(config, base, num_rows, generator)
        transformer.recomputes = config.run.activation_checkpointing
        transformer.uses_flex = config.run.attention == "flex"
        conditioning, vectors = _ports(table, transformer, generator, base)
        denoiser = Denoiser(
            transformer,
            mask_token_id=mask,
            logit_shift=False,
            predicts_next=isinstance(table, AutoregressiveTable | JointTable),
            full_attention=vectors is not None or (noise is not None and noise.cuts is None),
            process=None if noise is None else noise.process,
            conditioning=conditioning,
            vectors=vectors,
        )
        objective: TrainingObjective
        if isinstance(table, ContinuousTable):
            objective = ContinuousObjective(
                denoiser,
                weighting=table.weighting,
                given_share=table.given_share,
                belief_share=_BELIEF_SHARE if table.self_conditioning else 0.0,
                schedule_weight=table.schedule_weight,
            )
        elif isinstance(table, DistillTable):
            assert base is not None  # the configuration
            has_belief = conditioning is not None and conditioning.belief is not None
            objective = FlowEndObjective(
                denoiser,
                _teacher(base),
                table.teacher_steps,
                given_share=table.given_share,
                belief_share=_BELIEF_SHARE if has_belief else 0.0,
            )
        else:
            objective = Objective(denoiser, denoiser.predicts_next, noise)
        card = _card(config, denoiser, tokenizer, base)
        if isinstance(table, ContinuousTable) and vectors is not None and log_frequencies is not None:
            with torch.no_grad():
                vectors.prior.copy_(torch.from_numpy(log_frequencies))
        return cls(Network(transformer, conditioning, vectors), denoiser, objective, card, tokenizer)

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
        ports, vectors, config = (
            self.network.conditioning,
            self.network.vectors,
            self.network.transformer.config,
        )
        size = config.hidden_size
        with torch.device("meta"):
            transformer = Transformer(config)
            if ports is not None:
                ports = Conditioning(size, time=ports.time is not None, belief=ports.belief is not None)
        if vectors is not None:
            num_tokens, vector_size = vectors.table.shape
            schedule = GAUSSIAN_SCHEDULES.parse(self.card.schedule)
            vectors = TokenVectors(num_tokens, vector_size, size, schedule)
        network = Network(transformer, ports, vectors)
        network.load_state_dict(dict(weights), assign=True)
        checkpoint = Checkpoint(
            network.transformer,
            self.tokenizer,
            self.card,
            conditioning=network.conditioning,
            vectors=network.vectors,
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


def _teacher(base: Checkpoint) -> Denoiser:
    """Return a continuous model as the one whose flow is followed."""
    return Denoiser(
        base.transformer,
        logit_shift=False,
        predicts_next=False,
        full_attention=True,
        conditioning=base.conditioning,
        vectors=base.vectors,
    )


def _ports(
    table: ObjectiveTable, transformer: Transformer, generator: torch.Generator, base: Checkpoint | None
) -> tuple[Conditioning | None, TokenVectors | None]:
    """Return what tells noisy tokens the time and the last belief, and the vectors of a continuous model.

    A student starts with its teacher's; what the flow runs through, vectors and schedule, stays as it is.
    """
    if isinstance(table, DistillTable):
        assert base is not None  # the configuration
        ports, own = deepcopy(base.conditioning), deepcopy(base.vectors)
        assert own is not None  # `_load_base`
        own.requires_grad_(True).train()
        own.table.requires_grad_(False)
        own.schedule.requires_grad_(False)
        return (None if ports is None else ports.float().requires_grad_(True).train()), own
    if isinstance(table, AutoregressiveTable):
        return None, None
    config = transformer.config
    vectors = None
    if isinstance(table, ContinuousTable):
        schedule = GAUSSIAN_SCHEDULES.parse(table.schedule)
        vectors = TokenVectors.initialise(
            config.vocab_size, table.embedding_size, config.hidden_size, schedule, generator
        )
    has_time = isinstance(table, ContinuousTable) or table.time_conditioning
    if not (has_time or table.self_conditioning):
        return None, vectors
    ports = Conditioning.initialise(
        config.hidden_size, generator, time=has_time, belief=table.self_conditioning
    )
    return ports, vectors


def _load_base(source: str, tokenizer: Tokenizer, *, distilled: bool) -> Checkpoint:
    base = load_checkpoint(source, adapter=NO_ADAPTER)
    if base.tokenizer.backend.to_str() != tokenizer.backend.to_str():
        raise UsageError(
            f"the shards were not made with the tokenizer of {source}",
            f"make them with: unmask data --tokenizer {source}",
        )
    if distilled and base.vectors is None:
        raise UsageError(f"base {source}: its noise is on tokens", "distill a continuous model")
    if base.vectors is not None and not distilled:
        raise UsageError(
            f"base {source}: a continuous model is no base for another", "start from a model of tokens"
        )
    return base


def _noise(
    table: DiffusionTable, vocab_size: int, base: Checkpoint | None, end_token_id: int | None
) -> NoiseConfig:
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
        end_token_id=end_token_id,
    )


def _card(
    config: TrainingConfig,
    denoiser: Denoiser,
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
    if isinstance(table, AutoregressiveTable | DistillTable):
        return card
    block_lengths = table.block_lengths if isinstance(table, DiffusionTable) else ()
    return replace(
        card,
        block_length=max(block_lengths, default=config.data.length),
        attention="full" if denoiser.full_attention else "causal",
        process=table.process if isinstance(table, DiffusionTable) else GAUSSIAN,
        schedule=table.schedule,
    )
