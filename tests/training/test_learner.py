"""Learners: what they start from, what they become, and that it can be loaded and decoded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIG, byte_tokenizer, random_transformer, tiny_checkpoint
from torch import nn

from unmask.decoding.language_model import load
from unmask.errors import UsageError
from unmask.layout import causal_layout
from unmask.model.checkpoint import load_checkpoint, save_checkpoint
from unmask.training.batches import Batch
from unmask.training.config import TrainingConfig
from unmask.training.initialisation import widened
from unmask.training.learner import Learner
from unmask.training.loss import optimised

OBJECTIVES: dict[str, dict[str, object]] = {
    "ar": {"name": "ar"},
    "masked": {"name": "diffusion", "process": "masked"},
    "block": {"name": "diffusion", "process": "masked", "block_lengths": [4]},
    "joint": {"name": "joint", "block_lengths": [4, 8], "random_phase": True},
    "uniform": {"name": "diffusion", "process": "uniform", "time_conditioning": True},
    "hybrid": {"name": "diffusion", "process": "hybrid:0.2", "self_conditioning": True},
}


def config(objective: str, **model: object) -> TrainingConfig:
    shape = {"name": "new", "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    return TrainingConfig.model_validate(
        {
            "model": model or shape,
            "data": {"folder": "shards", "length": 24},
            "objective": OBJECTIVES[objective],
            "run": {"steps": 1, "forward_tokens": 64},
        }
    )


def train_a_little(learner: Learner) -> None:
    """Take two steps, so that no weight is at its start."""
    optimizer = torch.optim.AdamW(learner.network.parameters(), lr=1e-2)
    tokens = torch.randint(0, 256, (50,), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        losses = learner.objective(Batch(tokens, (0, 25, 50)), torch.Generator().manual_seed(1))
        torch.autograd.backward(optimised(losses))
        optimizer.step()
        optimizer.zero_grad()


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_exported_loads_as_it_was(objective: str, tmp_path: Path) -> None:
    learner = Learner.new(config(objective), byte_tokenizer())
    train_a_little(learner)
    learner.recipe.export(weights(learner.network), tmp_path / "model")
    model = load(str(tmp_path / "model"))
    assert all(
        torch.equal(tensor, model.checkpoint.transformer.state_dict()[name])
        for name, tensor in learner.denoiser.transformer.state_dict().items()
    )
    ours = learner.denoiser.conditioning
    theirs = model.denoiser.conditioning
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())
    card = model.checkpoint.card
    assert card.predicts_next == (objective in ("ar", "joint"))
    assert card.attention == ("full" if objective in ("masked", "uniform", "hybrid") else "causal")
    assert (card.mask_token_id is None) == (objective in ("ar", "uniform"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_learner_writes_samples(objective: str) -> None:
    learner = Learner.new(config(objective), byte_tokenizer())
    learner.network.eval()
    with torch.no_grad():
        assert learner.recipe.sample(3) == learner.recipe.sample(3) != learner.recipe.sample(4)


@pytest.mark.parametrize(
    ("objective", "options", "num_forwards"),
    [
        ("masked", {"rule": "top-k:4"}, 3),
        ("masked", {"sampler": "ancestral", "num_steps": 5, "temperature": 1.0}, 5),
        ("masked", {"sampler": "remdm-cap", "num_steps": 6, "temperature": 1.0}, 6),
        ("uniform", {"num_steps": 5, "temperature": 1.0}, 5),
        ("hybrid", {"num_steps": 5, "temperature": 1.0}, 5),
        ("block", {"rule": "top-k:2", "block_length": 4}, 6),
        ("block", {"sampler": "ancestral", "block_length": 4, "num_steps": 2, "temperature": 1.0}, 6),
    ],
)
def test_every_kind_of_model_generates(
    objective: str, options: dict[str, Any], num_forwards: int, tmp_path: Path
) -> None:
    learner = Learner.new(config(objective), byte_tokenizer())
    train_a_little(learner)
    learner.recipe.export(weights(learner.network), tmp_path / "model")
    model = load(str(tmp_path / "model"))
    arguments = {"max_tokens": 12, "stop_token_ids": (), "mode": "diffusion", "raw": True, **options}
    once, again = (model.generate("hello", **arguments) for _ in range(2))
    assert once.token_ids == again.token_ids
    assert once.num_tokens == 12
    assert once.num_decode_forwards == num_forwards
    assert all(1 <= step <= num_forwards for step in once.decided_at)
    assert not any(token == learner.denoiser.mask_token_id for token in once.token_ids)


def test_what_a_model_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    for objective, options, message in (
        ("uniform", {"mode": "ar"}, "not trained to predict next tokens"),
        ("uniform", {"mode": "diffusion", "rule": "threshold:0.9"}, "needs masked noise"),
        ("ar", {"mode": "diffusion"}, "no mask token"),
        ("masked", {"mode": "diffusion", "sampler": "renoise"}, "needs uniform noise"),
        ("joint", {"mode": "ar", "sampler": "ancestral"}, "only mode 'diffusion' denoises"),
        (
            "joint",
            {"mode": "diffusion", "sampler": "ancestral", "rule": "top-k"},
            "cannot be given with a rule",
        ),
    ):
        learner = Learner.new(config(objective), byte_tokenizer())
        folder = tmp_path / f"{objective}-{len(message)}"
        learner.recipe.export(weights(learner.network), folder)
        arguments: dict[str, Any] = {"max_tokens": 4, **options}
        with pytest.raises(UsageError, match=message):
            load(str(folder)).generate("hello", **arguments)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (Learner.new(config("uniform"), byte_tokenizer()) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True)
    )


def test_a_base_keeps_its_law_and_gets_a_mask(tmp_path: Path) -> None:
    base = tiny_checkpoint()
    save_checkpoint(base, tmp_path / "base")
    learner = Learner.new(config("joint", name="base", base=str(tmp_path / "base")), base.tokenizer)
    tokens = torch.arange(20)
    batch = Batch(tokens, (0, 20))
    with torch.no_grad():
        losses = learner.objective(batch, torch.Generator().manual_seed(0))
        logits = base.transformer.logits(base.transformer(tokens, causal_layout(20)))
    expected = nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
    torch.testing.assert_close(losses["ar"].total, expected)
    assert losses["diffusion"].weight == 0.3
    size = base.transformer.config.vocab_size
    assert learner.denoiser.mask_token_id == size
    assert learner.denoiser.vocab_size == size
    assert all(parameter.requires_grad for parameter in learner.network.parameters())
    learner.recipe.export(weights(learner.network), tmp_path / "joint")
    card = load_checkpoint(str(tmp_path / "joint")).card
    assert (card.family, card.logit_shift, card.predicts_next, card.block_length) == ("llama", False, True, 8)


def test_a_base_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base = tiny_checkpoint()
    save_checkpoint(base, tmp_path / "base")
    other = byte_tokenizer()
    other.backend.add_tokens(["another"])
    with pytest.raises(UsageError, match="unmask data --tokenizer"):
        Learner.new(config("joint", name="base", base=str(tmp_path / "base")), other)


def test_an_untied_head_starts_as_the_embeddings() -> None:
    tied = random_transformer(replace(CONFIG, tie_embeddings=True))
    wide = widened(tied, 270, untie=True)
    assert wide.head is not None
    assert torch.equal(wide.head.weight, wide.embed.weight)
    torch.testing.assert_close(wide.embed.weight[-1], tied.embed.weight.mean(0))
    assert wide.head.weight.data_ptr() != wide.embed.weight.data_ptr()
