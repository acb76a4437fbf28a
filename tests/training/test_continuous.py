"""Continuous models from their first gradient to their text."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from tiny_models import byte_tokenizer
from tiny_training import CONFIG
from torch import Tensor

from command_line import Command
from unmask.config import RopeConfig, TransformerConfig
from unmask.decoding.gaussian_samplers import GAUSSIAN_SAMPLERS
from unmask.decoding.gaussian_sampling import gaussian_sample
from unmask.decoding.generate import generate, stream
from unmask.decoding.generation import Generation, Snapshot
from unmask.decoding.guidance import Guided
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.decoding.samplers import parse_sampler
from unmask.diffusion.gaussian import GaussianDenoiser
from unmask.diffusion.gaussian_objective import given_rows
from unmask.diffusion.gaussian_schedule import GAUSSIAN_SCHEDULES
from unmask.diffusion.markov import MarkovChain
from unmask.errors import CheckpointError, UsageError
from unmask.evaluation.gaussian_likelihood import gaussian_bound
from unmask.evaluation.model_scorer import LIKELIHOODS, ModelScorer
from unmask.evaluation.scoring import LikelihoodRequest
from unmask.layout import Layout
from unmask.model.conditioning import Conditioning
from unmask.model.continuous import TokenVectors
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch
from unmask.training.config import TrainingConfig
from unmask.training.config_file import read_config
from unmask.training.continuous import (
    CROSS_ENTROPY,
    SCHEDULE,
    ContinuousObjective,
    FlowEndObjective,
    PieceRows,
)
from unmask.training.initialisation import random_transformer
from unmask.training.learner import Learner
from unmask.training.objectives import DIFFUSION
from unmask.training.optimizers import build_optimizers
from unmask.training.parallel import Workers
from unmask.training.run import TrainingRun
from unmask.training.run_folder import METRICS_FILE
from unmask.training.shards import Shards
from unmask.training.streams import noisy_stream

LENGTH = 24
BATCH = Batch(torch.randint(0, 256, (50,), generator=torch.Generator().manual_seed(0)), (0, 10, 11, 35, 50))
"""Four pieces of different lengths, the second of which is nothing but its given token."""


def config(**objective: object) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "model": {"name": "new", "hidden_size": 16, "num_layers": 1, "num_heads": 2},
            "data": {"folder": "shards", "length": LENGTH},
            "objective": {
                "name": "continuous",
                "embedding_size": 4,
                "weighting": "bound",
                "given_share": 0.0,
                **objective,
            },
            "run": {"steps": 1, "forward_tokens": 64},
        }
    )


def learner(**objective: object) -> Learner:
    """Return a learner whose ports and vectors have left their start."""
    built = Learner.new(config(**objective), byte_tokenizer())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in built.network.named_parameters():
            if not name.startswith("vectors.schedule"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return built


def total(built: Learner, batch: Batch = BATCH, seed: int = 1) -> Tensor:
    losses = built.objective(batch, torch.Generator().manual_seed(seed))
    return torch.stack([loss.weight * loss.total for loss in losses.values()]).sum()


def exported(built: Learner, folder: Path) -> LanguageModel:
    weights = {name: parameter.detach() for name, parameter in built.network.named_parameters()}
    built.recipe.export(weights, folder)
    return load(str(folder))


@pytest.mark.parametrize(("weighting", "name"), [("bound", DIFFUSION), ("cross_entropy", CROSS_ENTROPY)])
def test_every_token_but_the_given_ones_counts_once(weighting: str, name: str) -> None:
    losses = learner(weighting=weighting, schedule_weight=0.5).objective(
        BATCH, torch.Generator().manual_seed(1)
    )
    assert {name: (loss.num_tokens, loss.weight) for name, loss in losses.items()} == {
        name: (46, 1.0),
        SCHEDULE: (46, 0.5),
    }
    assert all(torch.isfinite(loss.total) for loss in losses.values())
    assert losses[name].total > 0


def test_what_is_measured_is_the_bound_of_whole_pieces_however_the_model_learns() -> None:
    by_bound, by_tokens = (
        learner(weighting=weighting, given_share=share).objective
        for weighting, share in (("bound", 0.0), ("cross_entropy", 1.0))
    )
    assert CROSS_ENTROPY in by_tokens(BATCH, torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (
            objective(BATCH, torch.Generator().manual_seed(1)) for objective in (by_bound, by_tokens)
        )
    assert first == second
    assert set(first) == {DIFFUSION, SCHEDULE}


def test_tokens_are_given_in_a_share_of_the_pieces() -> None:
    tokens = torch.zeros(400 * 11, dtype=torch.int64)
    rows = PieceRows.of(Batch(tokens, tuple(range(0, len(tokens) + 1, 11))))
    generator = torch.Generator().manual_seed(0)
    untouched = rows.with_given(0.0, generator)
    assert torch.equal(untouched.trained, rows.trained)
    counts = rows.with_given(0.5, generator).trained.sum(-1)
    assert 0.5 < (counts == 10).float().mean() < 0.65  # those left whole, and some in which none was given
    given = 10 - rows.with_given(1.0, generator).trained[:, 1:].sum(-1)
    assert torch.bincount(given, minlength=11).min() > 15  # from none to all alike, 36 of each on average
    assert not rows.with_given(1.0, generator).trained[:, 0].any()


def test_a_model_starts_with_how_frequent_tokens_are() -> None:
    frequencies = torch.linspace(-9, -3, 258, dtype=torch.float64).log_softmax(-1)
    built = Learner.new(config(), byte_tokenizer(), frequencies.numpy())
    vectors = built.denoiser.vectors
    assert vectors is not None
    noisy, gamma = torch.zeros(1, 5, 4), torch.full((1, 5), 39.0, dtype=torch.float64)
    torch.testing.assert_close(vectors.alone(noisy, gamma)[0, 0].log(), frequencies.float())
    with torch.no_grad():
        built.network.transformer.embed.weight.zero_()
        law = built.denoiser.informed()(noisy, gamma)[0, 0].log_softmax(-1)
    torch.testing.assert_close(law, frequencies.float())


def test_a_schedule_that_learns_nothing_has_no_loss() -> None:
    losses = learner(schedule="linear:-6,6").objective(BATCH, torch.Generator().manual_seed(1))
    assert set(losses) == {DIFFUSION}


def test_the_gradient_reaches_table_schedule_ports_and_backbone() -> None:
    built = learner()
    total(built).backward()  # type: ignore[no-untyped-call]
    silent = {
        name
        for name, parameter in built.network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    }
    assert silent == set()


class Watched(Denoiser):
    """A denoiser that remembers what it was shown."""

    seen: ClassVar[list[tuple[Tensor, Tensor, Layout]]] = []

    def continuous(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None, layout: Layout) -> Tensor:
        self.seen.append((noisy, gamma, layout))
        return super().continuous(noisy, gamma, belief, layout)


def watched(built: Learner) -> Watched:
    Watched.seen.clear()
    return Watched(**vars(built.denoiser))


def test_the_backbone_sees_the_pieces_and_no_padding() -> None:
    built = learner(self_conditioning=False)
    prompt = torch.zeros(50, dtype=torch.bool)
    prompt[[1, 2, 12]] = True
    assert isinstance(built.objective, ContinuousObjective)
    objective = replace(built.objective, denoiser=watched(built))
    losses = objective(replace(BATCH, prompt=prompt), torch.Generator().manual_seed(1))
    assert losses[DIFFUSION].num_tokens == 43
    ((noisy, gamma, layout),) = Watched.seen
    assert [segment.length for segment in layout.segments] == [10, 1, 24, 15]
    process = built.denoiser.informed().process
    given = replace(BATCH, prompt=prompt).given
    low, _ = process.schedule.ends()
    assert torch.equal(gamma == low, given)
    torch.testing.assert_close(noisy[given], given_rows(BATCH.tokens, process)[given])


def test_a_piece_does_not_know_its_neighbours() -> None:
    denoiser = learner().denoiser
    noisy = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    gamma = torch.ones(50, dtype=torch.float64)
    logits = denoiser.continuous(noisy, gamma, None, noisy_stream(BATCH.bounds).layout)
    (heard,) = torch.autograd.grad(logits[12].sum(), noisy)
    assert (heard.abs().sum(-1) > 0).nonzero()[:, 0].tolist() == list(range(11, 35))
    alone = denoiser.whole_continuous(noisy[None, 11:35], gamma[None, 11:35])
    torch.testing.assert_close(alone[0], logits[11:35], rtol=0, atol=1e-5)


def test_vectors_keep_their_length_and_are_not_decayed() -> None:
    built = learner()
    vectors = built.denoiser.vectors
    assert vectors is not None
    torch.testing.assert_close(vectors.process().embeddings.norm(dim=-1), torch.ones(258))
    (optimizer,) = build_optimizers(built.network, config().optimizer)
    decayed, free = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert {id(vectors.table), *map(id, vectors.schedule.parameters())} <= free
    assert id(vectors.up.weight) in decayed


def test_low_precision_leaves_the_evidence_alone() -> None:
    built = learner(self_conditioning=False)
    full = built.objective(BATCH, torch.Generator().manual_seed(1))[DIFFUSION].total
    with torch.autocast("cpu", torch.bfloat16):
        rough = built.objective(BATCH, torch.Generator().manual_seed(1))[DIFFUSION].total
    assert rough != full
    torch.testing.assert_close(rough, full, rtol=0.01, atol=0)


def test_what_is_exported_writes_what_the_learner_writes(tmp_path: Path) -> None:
    built = learner(schedule="gumbel:1.0,0.7,0.001")
    total(built).backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(built.network.parameters(), lr=1e-2).step()
    model = exported(built, tmp_path / "model")
    card = model.checkpoint.card
    assert (card.process, card.schedule, card.attention) == ("gaussian", "gumbel:1.0,0.7,0.001", "full")
    assert (card.mask_token_id, card.logit_shift, card.predicts_next) == (None, False, False)
    vectors = built.denoiser.vectors
    assert vectors is not None
    assert model.checkpoint.vectors is not None
    theirs = model.checkpoint.vectors.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in vectors.state_dict().items())
    options = Options(mode="diffusion", max_tokens=12, num_steps=4, temperature=1.0, block_length=LENGTH)
    built.network.eval()
    ours = generate(built.denoiser, built.tokenizer, model.encode("hello", raw=True), options)
    again = model.generate(
        "hello", mode="diffusion", max_tokens=12, num_steps=4, temperature=1.0, stop_token_ids=(), raw=True
    )
    assert ours.token_ids == again.token_ids


def test_a_folder_without_its_vectors_is_broken(tmp_path: Path) -> None:
    exported(learner(), tmp_path / "model")
    (tmp_path / "model" / "continuous.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"continuous\.safetensors"):
        load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("arguments", "num_forwards"),
    [
        ({}, 64),
        ({"sampler": "euler", "num_steps": 3}, 3),
        ({"sampler": "heun", "num_steps": 4}, 4),
        ({"sampler": "churn:0.5", "num_steps": 3}, 3),
        ({"sampler": "ancestral", "num_steps": 3}, 3),
    ],
)
def test_steps_are_forwards_and_the_prompt_is_given(arguments: dict[str, Any], num_forwards: int) -> None:
    built = learner()
    prompt = [104, 105, 33]
    sampler = arguments.get("sampler")
    options = Options(
        mode="diffusion",
        max_tokens=9,
        temperature=1.0,
        sampler=None if sampler is None else parse_sampler(sampler),
        num_steps=arguments.get("num_steps"),
        block_length=LENGTH,
    )
    denoiser = watched(built)
    *snapshots, done = stream(denoiser, built.tokenizer, prompt, options)
    assert isinstance(done, Generation)
    assert (done.num_tokens, done.num_forwards, len(Watched.seen)) == (9, num_forwards, num_forwards)
    assert all(1 <= step <= num_forwards for step in done.decided_at)
    process = denoiser.informed().process
    low, _ = process.schedule.ends()
    for noisy, gamma, _ in Watched.seen:
        assert len(noisy) == 12
        assert (gamma[:3] == low).all()
        assert (gamma[3:] > low).all()  # the lowest one says that a token is given
        torch.testing.assert_close(noisy[:3], given_rows(torch.tensor(prompt), process))
    last = snapshots[-1]
    assert isinstance(last, Snapshot)
    assert last.canvas == done.token_ids
    assert len(last.confidence) == 9
    assert all(0 <= value <= 1 for value in last.confidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ar"}, "not trained to predict next tokens"),
        ({"mode": "speculative"}, "drafts are masks"),
        ({"mode": "diffusion", "rule": "threshold:0.9"}, "rule Threshold.* needs masks"),
        ({"mode": "diffusion", "sampler": "remdm-cap"}, "needs noise on tokens"),
        ({"mode": "diffusion", "sampler": "threshold:0.9"}, "needs noise on tokens"),
        ({"mode": "diffusion", "sampler": "eulr"}, "did you mean 'euler'"),
        ({"mode": "diffusion", "num_steps": 0}, "num_steps=0"),
        ({"num_steps": 2.5}, "num_steps=2.5"),
        ({"frequency_penalty": 1.0}, "frequency_penalty=1.0"),
        ({"num_logprobs": 2}, "num_logprobs=2 is not supported in mode 'diffusion'"),
    ],
)
def test_what_a_continuous_model_cannot_do_is_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = exported(learner(), tmp_path / "model")
    with pytest.raises(UsageError, match=message):
        model.generate("hello", max_tokens=4, raw=True, **options)


def test_a_gaussian_sampler_is_refused_by_a_model_of_tokens() -> None:
    table = config().model_dump() | {"objective": {"name": "diffusion"}}
    built = Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())
    options = Options(mode="diffusion", sampler=parse_sampler("euler"))
    with pytest.raises(UsageError, match=r"sampler Euler\(\) needs Gaussian noise"):
        generate(built.denoiser, built.tokenizer, [1], options)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [("flow:0,2", "num_steps=0"), ("flow:4,1", "num_samples=1"), ("flow", "noise is on tokens")],
)
def test_a_flow_needs_steps_samples_and_vectors(likelihood: str, message: str, tmp_path: Path) -> None:
    table = config().model_dump() | {"objective": {"name": "diffusion"}}
    built = Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())
    model = exported(built, tmp_path / "model")
    with pytest.raises(UsageError, match=message):
        ModelScorer(model, Options(mode="diffusion"), LIKELIHOODS.parse(likelihood))


def test_a_continuous_model_is_no_base(tmp_path: Path) -> None:
    exported(learner(), tmp_path / "model")
    table = config().model_dump() | {"model": {"name": "base", "base": str(tmp_path / "model")}}
    with pytest.raises(UsageError, match="no base for another"):
        Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())


def test_a_student_learns_where_its_teachers_flow_ends(tmp_path: Path) -> None:
    """It starts as its teacher, learns all but the vectors and the schedule, and is exported as what it came from."""
    teacher = learner(schedule="learned:-6,5")
    exported(teacher, tmp_path / "teacher")
    table = config().model_dump() | {
        "model": {"name": "base", "base": str(tmp_path / "teacher")},
        "objective": {"name": "distill", "teacher_steps": 3, "given_share": 0.0},
    }
    student = Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())
    frozen = {name for name, weights in student.network.named_parameters() if not weights.requires_grad}
    assert frozen == {
        f"vectors.{name}" for name in ("table", "schedule.middle", "schedule.log_width", "schedule.logits")
    }
    weights = [each for each in student.network.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for _ in range(12):
        (loss,) = student.objective(BATCH, torch.Generator().manual_seed(3)).values()
        assert loss.num_tokens == BATCH.num_scored
        optimizer.zero_grad()
        (loss.total / loss.num_tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.9 * losses[0]
    card = exported(student, tmp_path / "student").checkpoint.card
    assert (card.process, card.schedule, card.attention) == ("gaussian", "learned:-6,5", "full")


def test_a_student_meets_prompts_and_beliefs_in_training_and_whole_pieces_when_measured(
    tmp_path: Path,
) -> None:
    exported(learner(), tmp_path / "teacher")
    table = config().model_dump() | {
        "model": {"name": "base", "base": str(tmp_path / "teacher")},
        "objective": {"name": "distill", "teacher_steps": 2, "given_share": 1.0},
    }
    student = Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())
    assert isinstance(student.objective, FlowEndObjective)
    told: list[Tensor | None] = []

    class Listening(Denoiser):
        def continuous(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None, layout: Layout) -> Tensor:
            told.append(belief)
            return super().continuous(noisy, gamma, belief, layout)

    objective = replace(student.objective, denoiser=Listening(**vars(student.denoiser)), belief_share=1.0)
    (loss,) = objective(BATCH, torch.Generator().manual_seed(3)).values()
    assert 0 < loss.num_tokens < BATCH.num_scored
    assert told[0] is None
    assert told[1] is not None
    torch.testing.assert_close(told[1].sum(-1), torch.ones(len(told[1])))
    with torch.no_grad():
        (loss,) = objective(BATCH, torch.Generator().manual_seed(3)).values()
    assert loss.num_tokens == BATCH.num_scored
    assert student.objective.belief_share > 0


def test_only_a_continuous_model_can_be_distilled(tmp_path: Path) -> None:
    table = config().model_dump() | {"objective": {"name": "distill"}}
    with pytest.raises(ValidationError, match=r"needs a continuous model as model\.base"):
        TrainingConfig.model_validate(table)
    masked = config().model_dump() | {"objective": {"name": "diffusion"}}
    exported(Learner.new(TrainingConfig.model_validate(masked), byte_tokenizer()), tmp_path / "masked")
    table["model"] = {"name": "base", "base": str(tmp_path / "masked")}
    with pytest.raises(UsageError, match="distill a continuous model"):
        Learner.new(TrainingConfig.model_validate(table), byte_tokenizer())


def test_self_conditioning_can_guide() -> None:
    """Weight 1 is the denoiser as it is, weight 0 the one that never hears of its belief."""
    informed = learner().denoiser.informed()
    blank, free = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.bool)

    def forgetful(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return informed(noisy, gamma)

    def confidence(denoiser: GaussianDenoiser) -> Tensor:
        sampler = GAUSSIAN_SAMPLERS.parse("euler")
        return gaussian_sample(
            denoiser, informed.process, blank, free, sampler, steps=4, seeds=(0,)
        ).confidence

    for weight, same in ((1.0, informed), (0.0, forgetful)):
        led = confidence(Guided(informed, forgetful, weight))
        torch.testing.assert_close(led, confidence(same), rtol=0, atol=1e-4)
    assert not torch.allclose(confidence(forgetful), confidence(informed), atol=1e-3)


def test_the_command_line_shows_it_sharpen(unmask_command: Command, tmp_path: Path) -> None:
    exported(learner(), tmp_path / "model")
    words = ("generate", tmp_path / "model", "the", "--raw", "--mode", "diffusion", "--max-tokens", "6")
    short = ("--num-steps", "3", "--sampler", "churn:0.5", "--ignore-stop-tokens")
    done = unmask_command(*words, *short, "--json", "--dtype", "bfloat16")
    assert done.status == 0, done.err
    assert len(json.loads(done.out)["token_ids"]) == 6
    watched = unmask_command(*words, *short, "--watch")
    assert watched.status == 0, watched.err
    assert [number in watched.out for number in ("   3 denoise", "   4 denoise")] == [True, False]
    assert watched.err.startswith("6 tokens, 3 decode forwards (3 with prefill)")
    refused = unmask_command(*words, "--rule", "threshold:0.9")
    assert refused.status == 2
    assert "needs masks, this model's noise is Gaussian" in refused.err


def test_a_hole_is_filled_and_what_surrounds_it_is_given(tmp_path: Path, unmask_command: Command) -> None:
    model = exported(learner(), tmp_path / "model")
    model.denoiser = Watched(**vars(model.denoiser))
    Watched.seen.clear()
    filled = model.fill("ab", "cd", length=3, num_steps=4, temperature=1.0)
    assert (filled.num_tokens, filled.num_forwards, len(Watched.seen)) == (3, 4, 4)
    process = model.denoiser.informed().process
    low, _ = process.schedule.ends()
    around = torch.tensor([*model.encode("ab", raw=True), *model.tokenizer.encode("cd")])
    for noisy, gamma, _ in Watched.seen:
        assert (gamma == low).tolist() == [True, True, False, False, False, True, True]
        torch.testing.assert_close(noisy[[0, 1, 5, 6]], given_rows(around, process))
    with pytest.raises(UsageError, match=r"rule Threshold.* needs masks"):
        model.fill("ab", "cd", length=3, rule="threshold:0.9")
    with pytest.raises(UsageError, match="num_steps=0"):
        model.fill("ab", "cd", length=3, num_steps=0)
    with pytest.raises(UsageError, match="length=0"):
        model.fill("ab", "cd", length=0)
    (tmp_path / "text").write_text("ab<hole>cd", encoding="utf-8")
    options = ("--model", tmp_path / "model", "--length", "3", "--steps", "4", "--temperature", "1", "--json")
    done = unmask_command("fill", tmp_path / "text", *options)
    assert done.status == 0, done.err
    assert json.loads(done.out)["token_ids"] == list(filled.token_ids)


def test_tasks_see_a_continuous_model(tmp_path: Path) -> None:
    """Likelihoods are the bound with the model's own belief; gaps are filled, and what is around them is seen."""
    model = exported(learner(), tmp_path / "model")
    options = Options(mode="diffusion", num_steps=3)
    scorer = ModelScorer(model, options, LIKELIHOODS.parse("bound:8"))
    answers = scorer.loglikelihood([LikelihoodRequest("ab", "cd"), LikelihoodRequest("ab", "cd")])
    assert [answer.num_tokens for answer in answers] == [2, 2]
    assert answers[0].nats == answers[1].nats < 0
    with pytest.raises(UsageError, match="likelihood 'duel': this model's noise is Gaussian"):
        ModelScorer(model, options, LIKELIHOODS.parse("duel"))
    flow = ModelScorer(model, options, LIKELIHOODS.parse("flow:3,2"))
    (answer,) = flow.loglikelihood([LikelihoodRequest("ab", "cd")])
    assert answer.nats < 0
    assert answer.standard_error is not None
    assert answer.standard_error > 0
    assert flow.settings["likelihood"] == "Flow(num_steps=3, num_samples=2)"
    Watched.seen.clear()
    hole = replace(options, max_tokens=3, suffix_ids=(4, 5))
    filling = generate(Watched(**vars(model.denoiser)), model.tokenizer, [1, 2], hole)
    assert (len(filling.token_ids), filling.num_forwards) == (3, 3)
    process = model.denoiser.informed().process
    low, _ = process.schedule.ends()
    for noisy, gamma, _ in Watched.seen:
        assert (gamma == low).tolist() == [True, True, False, False, False, True, True]
        around = noisy[[0, 1, 5, 6]]
        torch.testing.assert_close(around, given_rows(torch.tensor([1, 2, 4, 5]), process))


def test_a_chain_is_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    chain, size = MarkovChain.random(5, generator, sharpness=3.0), 32
    transformer = random_transformer(
        TransformerConfig(
            vocab_size=5,
            hidden_size=size,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_size=16,
            intermediate_size=64,
            max_positions=16,
            rope=RopeConfig(theta=10_000.0),
            tie_embeddings=True,
            qk_norm=True,
        ),
        generator,
    )
    schedule = GAUSSIAN_SCHEDULES.parse("learned:-4,6,16")
    vectors = TokenVectors.initialise(5, 4, size, schedule, generator)
    ports = Conditioning.initialise(size, generator, time=True, belief=True)
    denoiser = Denoiser(
        transformer,
        logit_shift=False,
        predicts_next=False,
        full_attention=True,
        conditioning=ports,
        vectors=vectors,
    )
    objective = ContinuousObjective(denoiser, belief_share=0.5)
    network = torch.nn.ModuleList([transformer, vectors, ports])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
    held_out = chain.sample(64, 12, generator)
    scored = torch.arange(12).expand(64, -1) > 0

    def bound() -> tuple[float, float]:
        informed = denoiser.informed()
        noise = torch.Generator().manual_seed(5)
        estimate = gaussian_bound(informed, held_out, informed.process, noise, num_samples=16, scored=scored)
        total = estimate.sum()
        return float(total.mean) / int(scored.sum()), float(total.standard_error) / int(scored.sum())

    before, _ = bound()
    for _ in range(200):
        tokens = chain.sample(24, 12, generator)
        losses = objective(Batch(tokens.flatten(), tuple(range(0, 24 * 12 + 1, 12))), generator)
        sum(loss.weight * loss.total / loss.num_tokens for loss in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    after, error = bound()
    rate = (chain.entropy(12) - chain.entropy(1)) / 11
    alone = chain.entropy(1)
    assert before > alone
    assert rate - 4 * error < after < 0.7 * alone, (before, after, error, rate, alone)


def test_a_run_that_was_cut_off_ends_the_same_to_the_bit(shards: Shards, tmp_path: Path) -> None:
    table = config().model_dump() | {"run": {"steps": 4, "forward_tokens": 80, "save_every": 2}}
    table["optimizer"] = {"name": "muon", "average_decay": 0.9}
    settings = TrainingConfig.model_validate(table)

    def run(folder: str, last: int) -> TrainingRun:
        recipe = Learner.new(settings, shards.tokenizer()).recipe
        alone = Workers(torch.device("cpu"))
        run = TrainingRun(settings, tmp_path / folder, shards, recipe, alone, lambda event: None)
        while run.step < last:
            run.train_step()
            run.rest()
        return run

    run("whole", 4)
    run("cut", 3)  # one step beyond its checkpoint
    run("cut", 4)
    for name in ("continuous.safetensors", "conditioning.safetensors", "model.safetensors"):
        whole, cut = (tmp_path / folder / "step-00000004" / "model" / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def test_two_processes_train_as_one(shards: Shards, tmp_path: Path) -> None:
    text = CONFIG.replace('name = "ar"', 'name = "continuous"').replace('"shards"', f'"{shards.folder}"')
    (tmp_path / "config.toml").write_text(text.replace("steps = 8", "steps = 3"))
    settings = read_config(tmp_path / "config.toml")
    frequencies = shards.train.log_frequencies(shards.manifest.vocab_size)
    recipe = Learner.new(settings, shards.tokenizer(), frequencies).recipe
    alone = Workers(torch.device("cpu"))
    TrainingRun(settings, tmp_path / "one", shards, recipe, alone, lambda event: None).run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "unmask", "train", str(tmp_path / "config.toml"), "--out"]
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / "two")],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    ours, theirs = (
        [json.loads(line)["losses"] for line in (tmp_path / folder / METRICS_FILE).read_text().splitlines()]
        for folder in ("two", "one")
    )
    assert ours == [pytest.approx(losses, rel=1e-4) for losses in theirs]
    assert [{DIFFUSION, SCHEDULE}, {CROSS_ENTROPY, SCHEDULE}] == [set(losses) for losses in ours[:2]]
