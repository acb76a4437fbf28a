"""A run can be cut off anywhere and ends the same; several processes train as one."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from tiny_training import make_shards, tiny_config, tiny_recipe, train

from unmask.errors import TrainingError, UsageError
from unmask.training.batches import Batch
from unmask.training.config_file import read_config
from unmask.training.journal import SAMPLES_FILE, TIMES_FILE, TrainingEvent
from unmask.training.loss import LossSum, TrainingObjective
from unmask.training.parallel import Workers
from unmask.training.run import CONFIG_FILE, MODEL_FOLDER, STATE_FOLDER, TrainingRun
from unmask.training.run_folder import METRICS_FILE, PARTIAL
from unmask.training.shards import Shards

ALONE = Workers(torch.device("cpu"))

FULL = (
    'optimizer.name="muon"',
    "optimizer.average_decay=0.9",
    "run.sample_every=2",
    "run.tensorboard=true",
    'run.dtype="bfloat16"',
)
"""Settings that bring every part of a run into play."""


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"step-{step:08d}" / MODEL_FOLDER / "model.safetensors")


def assert_same(one: Path, other: Path, step: int = 8) -> None:
    """Check that two runs left the same lines and the same weights, to the bit."""
    for name in (METRICS_FILE, SAMPLES_FILE):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = weights(one, step), weights(other, step)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def at_step(step: int, action: Callable[[], None]) -> Callable[[TrainingEvent], None]:
    """Return an observer that acts when a training step has been taken."""

    def observe(event: TrainingEvent) -> None:
        if event.record is not None and event.record.split == "train" and event.record.step == step:
            action()

    return observe


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class Killed(BaseException):
    pass


def die() -> None:
    raise Killed


def test_a_run_killed_with_signal_9_ends_as_the_uninterrupted_one(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "whole", shards, *FULL)
    cut = tmp_path / "cut"
    command = [sys.executable, tiny_training.__file__, str(cut), str(shards.folder), *FULL]
    environment = {**os.environ, "TINY_TRAINING_DIES_AT": "5"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [record["step"] for record in records(cut)][-1] == 5
    assert [path.name for path in cut.glob("step-*")] == ["step-00000003"]
    train(cut, shards, *FULL)
    assert_same(cut, tmp_path / "whole")


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_run_that_is_lost_at_any_step_goes_on_from_its_last_checkpoint(
    shards: Shards, tmp_path: Path, step: int
) -> None:
    train(tmp_path / "whole", shards, *FULL)
    with pytest.raises(Killed):
        train(tmp_path / "cut", shards, *FULL, observe=at_step(step, die))
    train(tmp_path / "cut", shards, *FULL)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_ctrl_c_finishes_the_step_and_saves(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "whole", shards)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", shards, observe=at_step(5, interrupt))
    assert records(tmp_path / "cut")[-1]["step"] == 5
    assert (tmp_path / "cut" / "step-00000005").is_dir()
    train(tmp_path / "cut", shards)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_checkpoints_hold_the_configuration_and_old_ones_go(shards: Shards, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, shards, "run.keep_checkpoints=2", "run.save_every=2")
    kept = sorted(path.name for path in folder.glob("*step*"))
    assert kept == ["step-00000006", "step-00000008"]
    for name in kept:
        config = read_config(folder / name / CONFIG_FILE)
        assert config == tiny_config("run.keep_checkpoints=2", "run.save_every=2")
    train(folder, shards, "run.keep_checkpoints=2", "run.save_every=2")
    assert len([record for record in records(folder) if record["split"] == "train"]) == 8


def test_a_run_of_older_code_is_continued(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "whole", shards, *FULL)
    with pytest.raises(Killed):
        train(tmp_path / "cut", shards, *FULL, observe=at_step(6, die))
    path = tmp_path / "cut" / CONFIG_FILE
    kept = [line for line in path.read_text().splitlines() if not line.startswith("activation_checkpointing")]
    path.write_text("\n".join(kept))
    with pytest.raises(UsageError, match=r"run\.seed=0, not 1"):
        train(tmp_path / "cut", shards, *FULL, "run.seed=1")
    train(tmp_path / "cut", shards, *FULL)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_records_say_what_was_trained(shards: Shards, tmp_path: Path) -> None:
    events: list[TrainingEvent] = []
    run = train(tmp_path / "run", shards, *FULL, observe=events.append)
    lines = records(tmp_path / "run")
    trained = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, 9))
    assert [line["step"] for line in lines if line["split"] == "held_out"] == [0, 4, 8]
    for line in lines:
        losses = line["losses"]
        assert isinstance(losses, dict)
        assert line["loss"] == pytest.approx(losses["ar"] + 0.1 * losses["half"])
        assert losses["half"] == pytest.approx(losses["ar"] / 2)
    packs = run._training
    assert trained[-1]["num_tokens"] == sum(packs.num_scored(number) for number in range(16))
    assert trained[0]["learning_rate"] == 0.005
    assert [event.sample for event in events if event.sample is not None] == [
        json.loads(line)["text"] for line in (tmp_path / "run" / SAMPLES_FILE).read_text().splitlines()
    ]
    assert events[-1].progress.done == events[-1].progress.total == 8
    assert len((tmp_path / "run" / TIMES_FILE).read_text().splitlines()) == 8


def test_curves_can_be_read_by_tensorboard(shards: Shards, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        train(tmp_path / "run", shards, *FULL, observe=at_step(5, die))
    train(tmp_path / "run", shards, *FULL)
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    points = {point.step: point.value for point in curves.Scalars("train/loss")}
    expected = {line["step"]: line["loss"] for line in records(tmp_path / "run") if line["split"] == "train"}
    assert points == pytest.approx(expected)
    assert {"train/ar", "train/learning_rate", "train/gradient_norm", "held_out/loss"} <= set(
        curves.Tags()["scalars"]
    )


def test_training_learns(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "run", shards, "run.steps=60", "run.measure_every=60", "run.save_every=60")
    first, last = (line["loss"] for line in records(tmp_path / "run") if line["split"] == "held_out")
    assert isinstance(first, float)
    assert isinstance(last, float)
    assert last < 0.6 * first


def test_shards_without_held_out_documents_are_only_trained_on(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, held_out_share=0)
    train(tmp_path / "run", shards)
    assert {line["split"] for line in records(tmp_path / "run")} == {"train"}


def test_a_run_by_the_clock_ends(shards: Shards, tmp_path: Path) -> None:
    config = tiny_config()
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"steps": None, "minutes": 0.005})}
    )
    run = TrainingRun(
        config, tmp_path / "run", shards, tiny_recipe(config, shards), ALONE, lambda event: None
    )
    run.run()
    assert run.seconds >= 0.3
    assert run.folder.checkpoints()[-1].name == f"step-{run.step:08d}"


def test_a_step_of_two_forwards_is_one_of_all_their_tokens(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation weighs every token alike, whatever forward it went through."""
    config = tiny_config("optimizer.clip_norm=inf", "run.steps=100")
    recipe = tiny_recipe(config, shards)
    run = TrainingRun(config, tmp_path / "run", shards, recipe, ALONE, lambda event: None)
    packs = run._training
    run.step = next(
        step for step in range(50) if packs.num_scored(2 * step) != packs.num_scored(2 * step + 1)
    )
    numbers = (2 * run.step, 2 * run.step + 1)
    totals = [run._forward("train", packs, number)["ar"].total for number in numbers]
    mean = torch.stack(totals).sum() / sum(packs.num_scored(number) for number in numbers) * 1.05
    expected = torch.autograd.grad(mean, list(recipe.model.parameters()))
    seen: list[torch.Tensor] = []
    (optimizer,) = run.optimizers

    def note_gradients() -> None:
        seen.extend(p.grad.clone() for p in recipe.model.parameters() if p.grad is not None)

    monkeypatch.setattr(optimizer, "step", note_gradients)
    run.train_step()
    torch.testing.assert_close(seen, list(expected))


def test_a_loss_may_score_fewer_tokens_than_the_batch_has(shards: Shards, tmp_path: Path) -> None:
    def scored_in_part(
        objective: TrainingObjective, kept: float, batch: Batch, generator: torch.Generator
    ) -> dict[str, LossSum]:
        return {
            name: LossSum(loss.total * kept, int(loss.num_tokens * kept), loss.weight)
            for name, loss in objective(batch, generator).items()
        }

    norms = []
    for kept in (1.0, 0.5):
        config = tiny_config("run.forwards_per_step=1", "run.measure_every=100")
        recipe = tiny_recipe(config, shards)
        recipe = replace(recipe, objective=partial(scored_in_part, recipe.objective, kept))
        folder = tmp_path / str(kept)
        run = TrainingRun(config, folder, shards, recipe, ALONE, lambda event: None)
        run.train_step()
        norms.append(records(folder)[-1]["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_losses_that_count_differently_are_refused(shards: Shards, tmp_path: Path) -> None:
    config = tiny_config()
    recipe = tiny_recipe(config, shards)
    inner = recipe.objective

    def unequal(batch: object, generator: torch.Generator) -> dict[str, LossSum]:
        losses = dict(inner(batch, generator))  # type: ignore[arg-type]
        return losses | {"half": losses["half"]._replace(num_tokens=1)}

    run = TrainingRun(
        config, tmp_path / "run", shards, replace(recipe, objective=unequal), ALONE, lambda event: None
    )
    with pytest.raises(ValueError, match=r"ar, half count .* all must count the same"):
        run.run()


def test_a_loss_that_is_no_number_ends_the_run(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower optimizer\.learning_rate"):
        train(tmp_path / "run", shards, "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0")


def test_a_folder_belongs_to_its_configuration_and_shards(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "run", shards)
    with pytest.raises(UsageError, match=r"with optimizer\.learning_rate=0\.01, not 0\.02"):
        train(tmp_path / "run", shards, "optimizer.learning_rate=0.02")
    other = make_shards(tmp_path, seed=1)
    with pytest.raises(UsageError, match="trained on other shards"):
        train(tmp_path / "run", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty and holds no training run"):
        train(tmp_path / "full", shards)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(shards: Shards, small_disk: Path) -> None:
    folder = small_disk / "run"
    with pytest.raises(Killed):
        train(folder, shards, observe=at_step(4, die))
    (small_disk / "ballast").write_bytes(bytes(400_000))
    with pytest.raises(TrainingError, match=r"No space left.*free some space"):
        train(folder, shards)
    assert [path.name for path in folder.glob("*step*")] == ["step-00000003"]
    (small_disk / "ballast").unlink()
    assert train(folder, shards).step == 8


def test_a_broken_checkpoint_is_named(shards: Shards, tmp_path: Path) -> None:
    train(tmp_path / "run", shards, "run.keep_checkpoints=2")
    state = tmp_path / "run" / "step-00000008" / STATE_FOLDER
    for path in state.iterdir():
        content = path.read_bytes()
        for size in (0, len(content) // 2):
            path.write_bytes(content[:size])
            with pytest.raises(
                TrainingError, match=r"step-00000008 cannot be read.*goes on from step-00000006"
            ):
                train(tmp_path / "run", shards, "run.keep_checkpoints=2")
        path.write_bytes(content)


def test_what_was_half_written_is_swept_away(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", shards, observe=at_step(4, die))
    (tmp_path / "run" / f"step-00000005{PARTIAL}").mkdir()
    (tmp_path / "run" / f"step-00000005{PARTIAL}" / "state").write_text("half")
    with (tmp_path / "run" / METRICS_FILE).open("a") as lines:
        lines.write('{"split": "train", "st')
    train(tmp_path / "run", shards)
    assert not list((tmp_path / "run").glob(f"*{PARTIAL}"))
    train(tmp_path / "whole", shards)
    assert_same(tmp_path / "run", tmp_path / "whole")


def run_processes(count: int, folder: Path, shards: Shards, *settings: str) -> None:
    """Run the small configuration in several processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, tiny_training.__file__, str(folder), str(shards.folder), *settings]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)


def test_two_processes_train_as_one(shards: Shards, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, shards, *FULL[:3])
    run_processes(2, two, shards, *FULL[:3])
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert ours["split"] == theirs["split"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        for key in ("step", "loss", "num_tokens", "learning_rate"):
            assert ours[key] == (None if theirs[key] is None else pytest.approx(theirs[key], rel=1e-6))
        if theirs["gradient_norm"] is not None:
            assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    for name, tensor in weights(one, 8).items():
        torch.testing.assert_close(weights(two, 8)[name], tensor, rtol=1e-4, atol=1e-5)
    assert len(list((two / "step-00000008" / STATE_FOLDER).glob("*.distcp"))) == 2
    read_back = train(two, shards, *FULL[:3])  # by one process, which finds nothing left to do
    assert read_back.average is not None
    for name, tensor in weights(two, 8).items():
        assert torch.equal(read_back.average.weights[name], tensor)


def test_steps_that_cannot_be_shared_are_refused(shards: Shards, tmp_path: Path) -> None:
    config = tiny_config("run.forwards_per_step=3")
    pair = Workers(torch.device("cpu"), 0, 2)
    with pytest.raises(UsageError, match="forwards_per_step=3 cannot be shared by 2 processes"):
        TrainingRun(config, tmp_path / "run", shards, tiny_recipe(config, shards), pair, lambda event: None)
