"""A conversion can be cut off anywhere: its last checkpoint is whole, and it ends as if nothing had happened."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_conversion import frozen, records, run, tiny_config
from torch import Tensor

from failing_disk import Fault, Killed, failing_disk
from unmask.decoding.language_model import load
from unmask.errors import FailureError, TrainingError, UsageError
from unmask.model.checkpoint import load_checkpoint
from unmask.training.conversion import CONFIG_FILE, METRICS_FILE, STATE_FILE, Conversion, ConversionEvent
from unmask.training.conversion_config import ConversionConfig
from unmask.training.run_folder import PARTIAL, RunFolder

RECIPES = {"frozen": frozen(), "joint": {"name": "joint"}}


def open_conversion(config: ConversionConfig, folder: Path) -> Conversion:
    return Conversion(config, folder, load_checkpoint(config.model, adapter="none"))


def last_state(folder: Path) -> dict[str, object]:
    checkpoint = RunFolder(folder, "conversion").checkpoints()[-1]
    state: dict[str, object] = torch.load(checkpoint / STATE_FILE, weights_only=True)
    return state


def weights(folder: Path) -> Mapping[str, Tensor]:
    """Return what the model in a run's folder has learnt, as anyone would load it."""
    checkpoint = load_checkpoint(str(folder))
    learnt = checkpoint.transformer if checkpoint.adapter is None else checkpoint.adapter
    return learnt.state_dict()


def are_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def sweep(
    folder: Path, fault: Fault, prepare: Callable[[], Callable[[], object]], check: Callable[[], None]
) -> int:
    """Do what `prepare` returns with a fault at each change of the disk in turn; return the number of changes."""
    for at in count():
        act = prepare()
        with failing_disk(folder, fault, at) as disk:
            try:
                act()
                raised = False
            except (Killed, FailureError):
                raised = True
        if not disk.has_failed:
            return at
        assert raised, f"change {at} failed and nobody said so"
        check()
    raise AssertionError


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed, as it was after two of its four steps and at its end."""

    config: ConversionConfig
    half_way: Path
    folder: Path
    num_changes: int


@pytest.fixture(scope="module", params=RECIPES)
def whole(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    config = tiny_config(base, steps=4, save_every=2, recipe=RECIPES[request.param])
    place = tmp_path_factory.mktemp("whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, place / "half-way", interrupt_at=2)
    with failing_disk(place / "run", "killed", 10**6) as disk:
        run(config, place / "run")
    return Whole(config, place / "half-way", place / "run", disk.count)


@pytest.mark.parametrize("fault", ["killed", "full"])
def test_a_save_that_fails_anywhere_leaves_a_whole_checkpoint(
    whole: Whole, fault: Fault, tmp_path: Path
) -> None:
    config, folder = whole.config, tmp_path / "disk" / "run"
    known = {2: weights(whole.half_way), 4: weights(whole.folder)}
    assert not are_same(known[2], known[4])
    conversion = open_conversion(config, whole.folder)
    conversion.folder = RunFolder(folder, "conversion")
    seen = set()

    def prepare() -> Callable[[], object]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole.half_way, folder)
        return conversion.save

    def check() -> None:
        step = last_state(folder)["step"]
        assert isinstance(step, int)
        seen.add(step)
        assert are_same(weights(folder), known[step])
        if fault == "full":
            assert step == 4 or not list(folder.glob(f"*{PARTIAL}"))
        again = open_conversion(config, folder)
        assert again.step == step
        assert not list(folder.glob(f"*{PARTIAL}"))

    assert sweep(folder, fault, prepare, check) >= 8
    assert seen == {2, 4}


@pytest.mark.parametrize("fault", ["killed", "full"])
def test_a_run_that_fails_as_it_begins_or_resumes_can_be_run_again(
    whole: Whole, fault: Fault, tmp_path: Path
) -> None:
    config, first, folder = whole.config, tmp_path / "first", tmp_path / "disk" / "run"
    shutil.copytree(whole.half_way, first)
    shutil.copytree(first / "step-00000002", first / f"step-00000004{PARTIAL}")
    with (first / METRICS_FILE).open("a") as lines:
        lines.write('{"step": 3}\n{"st')
    checkpoint = load_checkpoint(config.model, adapter="none")

    def begin() -> Callable[[], object]:
        shutil.rmtree(folder, ignore_errors=True)
        return lambda: Conversion(config, folder, checkpoint)

    def resume() -> Callable[[], object]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(first, folder)
        return lambda: Conversion(config, folder, checkpoint)

    def check_begun() -> None:
        assert Conversion(config, folder, checkpoint).step == 0
        assert ConversionConfig.model_validate_json((folder / CONFIG_FILE).read_text()) == config

    def check_resumed() -> None:
        assert Conversion(config, folder, checkpoint).step == 2
        assert records(folder) == records(whole.half_way)
        assert not list(folder.glob(f"*{PARTIAL}"))

    (tmp_path / "disk").mkdir()
    assert sweep(folder, fault, begin, check_begun) >= 3
    assert sweep(folder, fault, resume, check_resumed) >= 2


@pytest.mark.parametrize("fault", ["killed", "full"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_a_run_that_fails_ends_as_the_undisturbed_one(
    whole: Whole, share: float, fault: Fault, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    with (
        failing_disk(cut, fault, int(share * whole.num_changes)),
        pytest.raises(Killed if fault == "killed" else FailureError),
    ):
        run(whole.config, cut)
    run(whole.config, cut)
    assert records(cut) == records(whole.folder)
    assert are_same(weights(cut), weights(whole.folder))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    recipe: str, base: Path, small_disk: Path, tmp_path: Path
) -> None:
    config = tiny_config(base, recipe=RECIPES[recipe])
    run(config, tmp_path / "whole")
    folder = small_disk / "run"

    def fill(event: ConversionEvent) -> None:
        if event.record is not None and event.record.step == 4:
            free = shutil.disk_usage(small_disk).free
            (small_disk / "ballast").write_bytes(bytes(max(0, free - 8192)))

    with pytest.raises(FailureError, match="free some space"):
        open_conversion(config, folder).run(fill)
    assert last_state(folder)["step"] == 3
    assert not list(folder.glob(f"*{PARTIAL}"))
    load(str(folder))
    (small_disk / "ballast").unlink()
    run(config, folder)
    assert records(folder) == records(tmp_path / "whole")


@pytest.mark.parametrize("name", ["frozen", "drafter", "joint"])
def test_ctrl_c_finishes_the_step_and_saves(name: str, base: Path, tmp_path: Path) -> None:
    run(tiny_config(base), tmp_path / "adapter")
    model = tmp_path / "adapter" if name == "drafter" else base
    config = tiny_config(model, recipe={"name": name})
    run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", interrupt_at=4)
    assert last_state(tmp_path / "cut")["step"] == 4
    run(config, tmp_path / "cut")
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert are_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_broken_checkpoint_is_named(base: Path, tmp_path: Path) -> None:
    config = tiny_config(base)
    run(config, tmp_path / "run")
    path = tmp_path / "run" / "step-00000006" / STATE_FILE
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(
            TrainingError, match=r"step-00000006.*delete the checkpoint, and the run begins anew"
        ):
            run(config, tmp_path / "run")
    shutil.rmtree(path.parent)
    run(config, tmp_path / "run")
    assert len(records(tmp_path / "run")) == 6 + 3


@pytest.mark.parametrize("content", ["", "{", "\udcff"])
def test_a_broken_configuration_is_named(content: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(content, errors="surrogateescape")
    with pytest.raises(UsageError, match=f"{CONFIG_FILE} is broken.*name another folder"):
        run(tiny_config(base), tmp_path)


def test_what_another_program_is_writing_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"film{PARTIAL}").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        RunFolder(tmp_path, "conversion").claim(CONFIG_FILE, "{}", json.loads)
    assert (tmp_path / f"film{PARTIAL}").read_text() == "precious"
