"""The configuration of a training run: a TOML file of five tables, checked before anything is loaded (no torch)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unmask.config import RopeConfig, TransformerConfig
from unmask.training.learning_rate import WarmupStableDecay

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Table(BaseModel):
    """One table of the file; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def filled(cls, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what an older file says, with the defaults of keys that are newer than it.

        The default of a new key is what was done before it came, so that a run can be continued by newer code. What no
        longer fits is returned as it is.
        """
        try:
            return cls.model_validate(stored).model_dump(mode="json")
        except ValidationError:
            return stored


class NewModelTable(Table):
    """A transformer with random weights; its vocabulary is the tokenizer's, and a mask where the noise has one."""

    name: Literal["new"] = "new"
    """Start from random weights."""
    hidden_size: Positive
    """Width D."""
    num_layers: Positive
    """Number of layers."""
    num_heads: Positive
    """Query heads."""
    num_kv_heads: Positive = Field(default_factory=lambda data: data["num_heads"])
    """Key and value heads; by default as many as query heads."""
    head_size: Positive = Field(default_factory=lambda data: data["hidden_size"] // data["num_heads"])
    """Size of a head; by default D / query heads."""
    intermediate_size: Positive = Field(default_factory=lambda data: -(-data["hidden_size"] // 12) * 32)
    """Inner width of the MLP; by default about 8/3 D, a multiple of 32."""
    tie_embeddings: bool = True
    """Use the embeddings as output matrix too."""
    qk_norm: bool = True
    """Normalise queries and keys, which keeps attention stable at high learning rates."""
    rope_theta: Rate = 10_000.0
    """Base of the rotary embedding's wavelengths."""

    def transformer(self, vocab_size: int, *, max_positions: int) -> TransformerConfig:
        """Return the transformer's shape, for `vocab_size` embeddings: the tokenizer's, and a mask where needed."""
        return TransformerConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            intermediate_size=self.intermediate_size,
            max_positions=max_positions,
            rope=RopeConfig(theta=self.rope_theta),
            tie_embeddings=self.tie_embeddings,
            qk_norm=self.qk_norm,
        )


class BaseModelTable(Table):
    """A transformer with the weights of another model, all of which are trained."""

    name: Literal["base"] = "base"
    """Start from another model."""
    base: str
    """Catalogue name, folder or hub id."""
    untie_embeddings: bool = False
    """Give a model whose output matrix is its embeddings an output matrix of its own."""


ModelTable = NewModelTable | BaseModelTable


class DataTable(Table):
    """What the model reads."""

    folder: Path
    """Folder that `unmask data` made."""
    length: Annotated[int, Field(ge=2)] = 256
    """Tokens of a piece of a document, at most; longer documents are cut."""


class AutoregressiveTable(Table):
    """Predict the next token."""

    name: Literal["ar"]
    """The next-token loss."""


class DiffusionTable(Table):
    """Predict clean tokens from noisy ones."""

    name: Literal["diffusion"]
    """The diffusion loss."""
    process: str = "masked"
    """What noise does to a token: masked, uniform, hybrid, or the name of another package's process."""
    schedule: str = "linear"
    """How the noise depends on time, as NAME or NAME:NUMBER: linear, cosine, polynomial:2, log-linear, clipped, ..."""
    block_lengths: tuple[Positive, ...] = ()
    """Tokens that are denoised together, after the clean text before them; of several, one is drawn for each piece.
    None for the whole piece."""
    random_phase: bool = False
    """Cut the first block of each piece short at random, so that blocks may begin anywhere."""
    weighting: Literal["bound", "cross_entropy"] = "bound"
    """Weight of the terms: that of the likelihood bound, or plain cross-entropy."""
    times: Literal["low-discrepancy", "independent", "exact-count"] = "low-discrepancy"
    """How times are drawn; exact-count is for masked noise only."""
    complementary: bool = False
    """Noise every block twice, the second time where the first is clean; for masked noise only."""
    self_conditioning: bool = False
    """Show the denoiser its own last prediction, in half of the batches."""
    time_conditioning: bool = False
    """Tell the denoiser the time."""


class JointTable(DiffusionTable):
    """Both losses in one forward: a causal clean stream and noisy blocks that grow from it."""

    name: Literal["joint"]  # type: ignore[assignment]
    """The sum of both losses."""
    diffusion_weight: Rate = 0.3
    """Weight of the diffusion loss beside the next-token loss."""


class ContinuousTable(Table):
    """Predict tokens from noisy vectors of theirs, the whole piece at once."""

    name: Literal["continuous"]
    """The diffusion loss of Gaussian noise, and what its schedule minimises."""
    embedding_size: Annotated[int, Field(ge=2)] = 16
    """Size E of the tokens' vectors, which are learnt and of unit length."""
    schedule: str = "learned:-6,5"
    """How the noise depends on time, as NAME:NUMBER,...: linear, learned or gumbel (docs/continuous.md)."""
    weighting: Literal["bound", "cross_entropy"] = "cross_entropy"
    """Plain cross-entropy, or the likelihood bound, which trains the schedule's ends too. Either way the bound is what
    is measured on held-out documents."""
    given_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pieces in which a random part of the tokens is given, as prompts and the ends of gaps are."""
    self_conditioning: bool = True
    """Show the denoiser its own first prediction, for half of the pieces."""
    schedule_weight: Rate = 1.0
    """Weight of what the schedule minimises beside the diffusion loss."""


class DistillTable(Table):
    """Say from any noise where the flow of the base, a continuous model, ends: for texts in few steps."""

    name: Literal["distill"]
    """The cross-entropy to the base's last prediction."""
    teacher_steps: Positive = 16
    """Forwards of the base for each of the student's."""
    given_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pieces in which a random part of the tokens is given, as prompts and the ends of gaps are."""


ObjectiveTable = AutoregressiveTable | DiffusionTable | JointTable | ContinuousTable | DistillTable


class AdamWTable(Table):
    """AdamW and the learning rate over the run: warm-up, stable, decay."""

    name: Literal["adamw"] = "adamw"
    """The optimiser."""
    learning_rate: Rate = 1e-3
    """Peak rate."""
    warmup_steps: Count = 100
    """Steps over which the rate rises."""
    decay_share: Share = 0.2
    """Last share of the run, over which the rate falls linearly to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's memories of the gradient and of its square."""
    clip_norm: Rate = 1.0
    """Largest norm of the gradient; inf to leave it as it is."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the weights' moving average, with which the model is measured, sampled and exported; 0 for none."""

    @property
    def learning_rates(self) -> WarmupStableDecay:
        return WarmupStableDecay(self.learning_rate, self.warmup_steps, self.decay_share)


class MuonTable(AdamWTable):
    """Muon for the matrices inside the layers, AdamW for the rest, at the same learning rate."""

    name: Literal["muon"] = "muon"  # type: ignore[assignment]
    """The optimiser."""
    momentum: Share = 0.95
    """Muon's memory of the gradient."""


OptimizerTable = AdamWTable | MuonTable


class RunTable(Table):
    """How long, in which portions, and what is kept and shown."""

    seed: Count = 0
    """Seed of the weights, the order of the data and all noise."""
    steps: Positive | None = None
    """Optimiser steps."""
    minutes: Rate | None = None
    """Training time, in the place of `steps`; such a run cannot be repeated to the bit."""
    forward_tokens: Positive = 4096
    """Tokens in one forward, at most."""
    forwards_per_step: Positive = 1
    """Forwards in one optimiser step, all processes together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; its weights and the optimiser's state are float32 either way."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the layers for the way back, and run each layer once more there: less memory, about a
    third more time, and the same gradients."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """flex: one FlexAttention kernel, which skips what the layout hides, in the place of a call for each shape of
    piece; on CUDA only."""
    measure_every: Positive = 250
    """Steps between measurements on held-out documents."""
    held_out_tokens: Positive = 100_000
    """Held-out tokens that are measured, at most."""
    sample_every: Count = 0
    """Steps between samples of what the model writes; 0 for none."""
    save_every: Positive = 250
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 1
    """Number of checkpoints that are kept, the latest ones."""
    tensorboard: bool = False
    """Write TensorBoard's event files too."""

    @model_validator(mode="after")
    def _one_budget(self) -> "RunTable":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        return self


class TrainingConfig(Table):
    """All that decides a training run on given shards."""

    model: Annotated[ModelTable, Field(discriminator="name")]
    data: DataTable
    objective: Annotated[ObjectiveTable, Field(discriminator="name")]
    optimizer: Annotated[OptimizerTable, Field(discriminator="name")] = AdamWTable()
    run: RunTable

    @model_validator(mode="after")
    def _a_piece_fits(self) -> "TrainingConfig":
        if self.run.forward_tokens <= self.data.length:
            raise ValueError(
                f"run.forward_tokens={self.run.forward_tokens} must exceed data.length={self.data.length}"
            )
        if isinstance(self.objective, DistillTable) and isinstance(self.model, NewModelTable):
            raise ValueError("objective.name='distill' needs a continuous model as model.base")
        if isinstance(self.model, NewModelTable):
            self.model.transformer(1, max_positions=self.data.length + 1)
        return self

    def to_toml(self) -> str:
        """Return the configuration with every default written out, as a file that gives the same one again."""
        tables = self.model_dump(mode="json", exclude_none=True)
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for name, table in tables.items()
        )


VARIANTS: Mapping[str, Mapping[str, type[Table]]] = {
    "model": {"new": NewModelTable, "base": BaseModelTable},
    "objective": {
        "ar": AutoregressiveTable,
        "diffusion": DiffusionTable,
        "joint": JointTable,
        "continuous": ContinuousTable,
        "distill": DistillTable,
    },
    "optimizer": {"adamw": AdamWTable, "muon": MuonTable},
}
"""The tables whose other keys depend on their `name`."""


def _toml(value: object) -> str:
    """Return a value in TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)  # whose escapes are TOML's too
        case list():
            return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
