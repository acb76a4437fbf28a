"""The configuration of a conversion, checked before anything is loaded (no torch)."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from unmask.config import LinearName
from unmask.training.config import Count, Positive, Rate, Share, Table
from unmask.training.learning_rate import WarmupStableDecay


class Recipe(Table):
    """One way to convert."""

    learning_rate: Rate
    """Peak rate of AdamW."""


class FrozenRecipe(Recipe):
    """The model stays what it was; an adapter on canvas tokens learns to predict what it would write."""

    name: Literal["frozen"] = "frozen"
    """The base untouched, an adapter beside it."""
    learning_rate: Rate = 1e-3
    """Peak rate of AdamW."""
    rank: Positive = 32
    """Rank of the adapter."""
    alpha: Rate = 32.0
    """The update is scaled by alpha / rank."""
    targets: tuple[LinearName, ...] = get_args(LinearName)
    """Linear maps that the adapter changes."""
    drafting_share: Share = 0.7
    """Share of fully open canvases; the others are opened at a random rate."""
    draft_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Weight of a draft's positions: decay to the power of the place."""
    label_share: Share = 0.5
    """Share of the true token in the target of partly open canvases; the rest is the model's own law."""
    teacher_temperature: Rate = 1.0
    """Temperature of the model's own law as a target: 1 for the law, towards 0 for its favourite token alone."""
    logit_shift: bool = True
    """Let each canvas place predict the next one, as the model was trained to, and not its own."""


class DrafterRecipe(Recipe):
    """An adapter that exists is tuned for acceptance: its drafts, as far as the first error, against the model."""

    name: Literal["drafter"] = "drafter"
    """An adapter tuned further, for acceptance."""
    learning_rate: Rate = 2e-4
    """Peak rate of AdamW."""
    adapter: str | None = None
    """Adapter to start from; without, the model's own, or for a model that denoises by itself a new one."""
    rank: Positive | None = None
    """Rank of a new adapter, 32 unless given; one that exists has its own."""
    alpha: Rate | None = None
    """The update of a new adapter is scaled by alpha / rank, with alpha 32 unless given."""
    drafting_share: Share = 0.8
    """Share of fully open canvases, which are drafts; by the others, opened at a random rate, denoising stays alive."""
    label_share: Share = 0.5
    """Share of the true token in the target of partly open canvases; the rest is the model's own law."""
    support: Positive = 200
    """Likeliest tokens of model and drafter that are compared."""
    temperature: Rate = 3.0
    """Temperature of both laws in the acceptance loss."""
    eta: Annotated[float, Field(ge=0)] = 0.5
    """How fast the loss turns from divergence to acceptance as drafts get better."""


class JointRecipe(Recipe):
    """All weights learn next tokens and denoising at once, on ``[clean | noisy]``."""

    name: Literal["joint"] = "joint"
    """All weights, by both losses."""
    learning_rate: Rate = 2e-5
    """Peak rate of AdamW."""
    diffusion_weight: Rate = 0.3
    """Weight of the diffusion loss beside the next-token loss."""
    complementary: bool = False
    """Noise every block twice, the second time where the first is clean: every token is learnt from once."""
    next_token_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """First share of the run, which trains next tokens alone."""
    untie_embeddings: bool = False
    """Give a model whose output matrix is its embeddings an output matrix of its own."""


AnyRecipe = Annotated[FrozenRecipe | DrafterRecipe | JointRecipe, Field(discriminator="name")]

RECIPES: dict[str, type[Recipe]] = {"frozen": FrozenRecipe, "drafter": DrafterRecipe, "joint": JointRecipe}


class ConversionConfig(Table):
    """All that decides a conversion. The same config on the same machine gives the same adapter, interrupted or not.

    With `minutes` in the place of `steps` the run ends by the clock, and only the data stays reproducible.
    """

    model: str
    """Catalogue name, folder, GGUF file or hub id of the autoregressive model."""
    seed: int = 0
    """Seed of the documents, their order and all noise."""
    steps: Positive | None = None
    """Optimiser steps."""
    minutes: Rate | None = None
    """Training time, in the place of `steps`; writing the documents is not counted."""
    synthetic_tokens: Count = 300_000
    """Tokens of text that the model writes for its own training."""
    texts: tuple[Path, ...] = ()
    """Files of your own text: .txt or .txt.xz (documents separated by a line `<|doc|>`), or .jsonl with "messages", of
    which the answers are learnt, or a "text"."""
    text_weights: tuple[Rate, ...] | None = None
    """Shares of the files; None for the same number of tokens from each, while it lasts."""
    text_tokens: Count = 100_000
    """Tokens taken from `texts`."""
    length: Annotated[int, Field(ge=32)] = 320
    """Tokens of a document, at most."""
    batch_documents: Positive = 3
    """Documents in one optimiser step."""
    synthesis_rows: Positive = 256
    """Documents that are written side by side."""
    recipe: AnyRecipe = FrozenRecipe()
    """What is trained, and towards what."""
    block_lengths: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (4, 8, 16, 32)
    """Canvas lengths, drawn at random, so that any of them can be chosen at inference."""
    warmup_steps: Count = 30
    """Steps over which the rate rises."""
    decay_share: Share = 0.5
    """Last share of the run over which the rate falls linearly to zero."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; what is trained is always stored in float32."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the layers for the way back, and run each layer once more there."""
    held_out_documents: Positive = 24
    """Documents kept out of training, on which the loss is measured."""
    save_every: Positive = 50
    """Steps between checkpoints, and between measurements on held-out documents."""

    @model_validator(mode="after")
    def _one_budget(self) -> "ConversionConfig":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        if self.text_weights is not None and len(self.text_weights) != len(self.texts):
            raise ValueError(f"{len(self.text_weights)} text_weights for {len(self.texts)} texts")
        if not self.synthetic_tokens and not (self.texts and self.text_tokens):
            raise ValueError("there is nothing to train on: give synthetic_tokens, or texts and text_tokens")
        return self

    @property
    def learning_rates(self) -> WarmupStableDecay:
        return WarmupStableDecay(self.recipe.learning_rate, self.warmup_steps, self.decay_share)
