"""A conversion learns, and leaves the base as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_conversion import frozen, records, run, tiny_config
from tiny_models import tiny_checkpoint

from unmask.decoding.language_model import LanguageModel, load
from unmask.errors import TrainingError, UsageError
from unmask.model.checkpoint import load_checkpoint
from unmask.model.denoiser import Denoiser
from unmask.training.blocks import BlockConfig
from unmask.training.conversion import Conversion
from unmask.training.documents import Document, DocumentFile, read_texts, sample_windows
from unmask.training.frozen_objective import ObjectiveConfig, conversion_loss
from unmask.training.soft_targets import AcceptanceLoss


def test_training_lowers_the_held_out_loss_and_leaves_the_base_alone(base: Path, tmp_path: Path) -> None:
    before = load_checkpoint(str(base), adapter="none").transformer.state_dict()
    after = run(
        tiny_config(base, steps=40, save_every=40, recipe=frozen(learning_rate=1e-2)), tmp_path / "out"
    ).transformer
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
    held_out = [record["loss"] for record in records(tmp_path / "out") if record["split"] == "held_out"]
    assert held_out[-1] < held_out[0]


def test_the_folder_is_a_model_whose_speculation_is_lossless(base: Path, tmp_path: Path) -> None:
    run(tiny_config(base), tmp_path / "out")
    model: LanguageModel = load(str(tmp_path / "out"))
    ar = model.generate("hello", max_tokens=20)
    assert ar.token_ids == load(str(base)).generate("hello", max_tokens=20).token_ids
    for block_length in (2, 4, 7):
        fast = model.generate("hello", mode="speculative", max_tokens=20, block_length=block_length)
        assert fast.token_ids == ar.token_ids
    assert model.generate("hello", mode="diffusion", max_tokens=20).num_tokens <= 20


def test_a_drafter_tunes_the_adapter_it_is_given(base: Path, tmp_path: Path) -> None:
    run(tiny_config(base), tmp_path / "adapter")
    start = load_checkpoint(str(tmp_path / "adapter"))
    assert start.adapter is not None
    before = {key: value.clone() for key, value in start.adapter.state_dict().items()}
    config = tiny_config(base, recipe={"name": "drafter", "learning_rate": 1e-2}, steps=20)
    Conversion(config, tmp_path / "tuned", start).run(lambda event: None)
    after = load_checkpoint(str(tmp_path / "tuned")).adapter
    assert after is not None
    assert any(not torch.equal(value, before[key]) for key, value in after.state_dict().items())
    held_out = [record["loss"] for record in records(tmp_path / "tuned") if record["split"] == "held_out"]
    assert held_out[-1] < held_out[0]
    ranked = tiny_config(base, recipe={"name": "drafter", "rank": 4}, steps=20)
    with pytest.raises(UsageError, match="has its own rank"):
        Conversion(ranked, tmp_path / "ranked", load_checkpoint(str(tmp_path / "adapter")))
    assert not (tmp_path / "ranked").exists()
    with pytest.raises(UsageError, match="has no adapter to tune"):
        Conversion(config, tmp_path / "bare", load_checkpoint(str(base), adapter="none"))


def test_a_joint_model_has_three_modes(base: Path, tmp_path: Path) -> None:
    config = tiny_config(
        base, recipe={"name": "joint", "learning_rate": 1e-2, "next_token_share": 0.3}, steps=20
    )
    Conversion(config, tmp_path / "out", load_checkpoint(str(base), adapter="none")).run(lambda event: None)
    held_out = [record["loss"] for record in records(tmp_path / "out") if record["split"] == "held_out"]
    assert held_out[-1] < held_out[0]
    model = load(str(tmp_path / "out"))
    ar = model.generate("hello", max_tokens=20)
    assert ar.token_ids == model.generate("hello", mode="speculative", max_tokens=20).token_ids
    assert model.generate("hello", mode="diffusion", max_tokens=20).num_tokens <= 20
    assert model.checkpoint.card.logit_shift is False


def test_a_folder_belongs_to_its_config(base: Path, tmp_path: Path) -> None:
    run(tiny_config(base), tmp_path / "out")
    with pytest.raises(UsageError, match=r"recipe\.rank=2, not 3"):
        run(tiny_config(base, recipe=frozen(rank=3)), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        run(tiny_config(base), tmp_path / "full")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"minutes": 1}, "either steps or minutes"),
        ({"steps": None}, "either steps or minutes"),
        ({"synthetic_tokens": 0}, "nothing to train on"),
        ({"recipe": frozen(drafting_share=2)}, "less than or equal to 1"),
        ({"recipe": frozen(targets=("q", "r"))}, "targets"),
        ({"recipe": {"name": "joint", "rank": 2}}, "rank"),
        ({"recipe": {"name": "frosen"}}, "frosen"),
        ({"learning_rat": 1}, "learning_rat"),
    ],
)
def test_wrong_settings_are_refused_by_name(base: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_config(base, **changes)


def test_too_few_documents_are_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    """Two batches of four rows are eight documents at least; the same folder then takes what the refusal proposes."""
    for changes in ({"held_out_documents": 8}, {"synthetic_tokens": 192, "held_out_documents": 4}):
        with pytest.raises(UsageError, match=r"too few.*lower held_out_documents"):
            run(tiny_config(base, **changes), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    run(tiny_config(base, steps=1, held_out_documents=7), tmp_path / "out")


def test_a_loss_that_is_no_number_ends_the_run(base: Path, tmp_path: Path) -> None:
    config = tiny_config(base, recipe={"name": "joint", "learning_rate": 1e30}, warmup_steps=0)
    with pytest.raises(TrainingError, match="lower the learning rate, in another folder"):
        run(config, tmp_path / "out")


def test_a_model_without_next_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    other = replace(checkpoint, card=replace(checkpoint.card, predicts_next=False))
    with pytest.raises(UsageError, match="predicts no next tokens"):
        Conversion(tiny_config(base), tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_texts_are_read_in_every_format_and_a_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|doc|>\ntwo\nlines\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    assert list(read_texts(tmp_path / "a.txt")) == ["one\n", "two\nlines\n"]
    assert list(read_texts(tmp_path / "b.jsonl")) == ["three", "four"]
    (tmp_path / "c.jsonl").write_text('{"txt": "three"}\n')
    (tmp_path / "d.txt.xz").write_bytes(b"not xz")
    for name in ("c.jsonl", "d.txt.xz", "missing.txt"):
        with pytest.raises(TrainingError, match=name):
            list(read_texts(tmp_path / name))


def test_windows_keep_to_the_budget_and_repeat_with_the_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join("some words of text " * 40 for _ in range(30)))
    tokenizer = tiny_checkpoint().tokenizer
    draws = [
        sample_windows([tmp_path / "a.txt"], tokenizer, num_tokens=400, length=64, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert all(32 <= len(window.ids) <= 64 for window in draws[0])
    assert 400 <= sum(len(window.ids) for window in draws[0]) < 400 + 64


def test_a_half_written_batch_of_documents_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("[1, 2]\n[3]\n[4]\n[5, ")
    kept = DocumentFile(path, batch_size=2)
    assert kept.documents == [[1, 2], [3]]
    kept.fill(lambda batch: [[batch], [batch]], 5, lambda done, total: None)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [[1, 2], [3], [1], [1]]


def test_a_joint_model_gets_a_drafter_of_its_own(base: Path, tmp_path: Path) -> None:
    joint = {"name": "joint", "learning_rate": 1e-3}
    Conversion(
        tiny_config(base, recipe=joint), tmp_path / "joint", load_checkpoint(str(base), adapter="none")
    ).run(lambda event: None)
    folder = str(tmp_path / "joint")
    start = load_checkpoint(folder)
    recipe = {"name": "drafter", "rank": 3, "learning_rate": 1e-2}
    config = tiny_config(base, model=folder, recipe=recipe, steps=30)
    Conversion(config, tmp_path / "tuned", start).run(lambda event: None)
    tuned = load_checkpoint(str(tmp_path / "tuned"))
    assert tuned.adapter is not None
    assert (tuned.adapter.config.rank, tuned.card.logit_shift) == (3, start.card.logit_shift)
    assert tuned.card.mask_token_id == start.card.mask_token_id
    held_out = [record["loss"] for record in records(tmp_path / "tuned") if record["split"] == "held_out"]
    assert held_out[-1] < held_out[0]
    texts = [
        load(str(tmp_path / "tuned")).generate("hi", mode=mode, max_tokens=20, raw=True).token_ids
        for mode in ("ar", "speculative")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("logit_shift", [True, False])
def test_what_nobody_takes_of_a_draft_counts_nothing(logit_shift: bool, base: Path) -> None:
    """The first draft is the model's own: a perfect drafter's cycle is its block and one, shift or no shift."""
    checkpoint = load_checkpoint(str(base), adapter="untrained")
    assert checkpoint.adapter is not None
    denoiser = Denoiser(
        checkpoint.transformer, checkpoint.adapter, checkpoint.card.mask_token_id, logit_shift=logit_shift
    )
    documents = [Document.of_text(torch.randint(0, 250, (60,)).tolist()) for _ in range(3)]
    config = ObjectiveConfig(BlockConfig((4,), 1.0), 1.0, 0.0, acceptance=AcceptanceLoss())
    loss = conversion_loss(denoiser, documents, config, np.random.default_rng(0))
    assert (loss.cycle_tokens >= 2).all()
    assert (loss.cycle_tokens <= 5).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["frozen", "drafter", "joint"])
def test_a_gpu_learns_what_a_cpu_learns(name: str, base: Path, tmp_path: Path) -> None:
    run(tiny_config(base), tmp_path / "adapter")
    folder = str(tmp_path / "adapter") if name == "drafter" else str(base)
    losses = []
    for device in ("cpu", "cuda"):
        checkpoint = load_checkpoint(folder, adapter=None if name == "drafter" else "none", device=device)
        config = tiny_config(base, recipe={"name": name}, steps=2)
        Conversion(config, tmp_path / device, checkpoint).run(lambda event: None)
        losses.append([record["loss"] for record in records(tmp_path / device)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
