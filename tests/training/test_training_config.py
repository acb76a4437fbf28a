"""A configuration is checked before anything is loaded, and written out in full."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import CONFIG

from unmask.errors import UsageError
from unmask.training.config import MuonTable, NewModelTable
from unmask.training.config_file import read_config

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_the_resolved_file_gives_the_same_configuration(file: Path, tmp_path: Path) -> None:
    settings = [
        "objective.name=joint",
        "objective.process=hybrid",
        "objective.block_lengths=[4]",
        "optimizer.name=muon",
    ]
    more = ["optimizer.clip_norm=inf", 'data.folder=odd "name"\\x', "optimizer.learning_rate=1e-5"]
    config = read_config(file, [*settings, *more])
    assert isinstance(config.optimizer, MuonTable)
    assert str(config.data.folder) == 'odd "name"\\x'
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(config.to_toml())
    assert read_config(resolved) == config
    assert "head_size = 8\n" in resolved.read_text()


def test_defaults_follow_from_what_is_given(file: Path) -> None:
    model = read_config(file, ["model.hidden_size=100", "model.num_heads=5"]).model
    assert isinstance(model, NewModelTable)
    assert (model.head_size, model.intermediate_size, model.num_kv_heads) == (20, 288, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["run.step=3"], r"unknown key run 'step' \(did you mean 'steps'\?\)"),
        (["optimizer.lerning_rate=1"], "did you mean 'learning_rate'"),
        (["optimiser.clip_norm=1"], r"unknown table 'optimiser' \(did you mean 'optimizer'\?\)"),
        (["objective.name=diffusion", "objective.proces=masked"], "did you mean 'process'"),
        (
            ["objective.process=masked"],
            r"no meaning when objective.name is 'ar' \(it belongs to diffusion and joint\)",
        ),
        (["optimizer.momentum=0.9"], r"no meaning when optimizer.name is 'adamw' \(it belongs to muon\)"),
        (["objective.name=arr"], r"unknown objective 'arr' \(did you mean 'ar'\?\)"),
        (["optimizer.name=sgd"], r"unknown optimizer 'sgd' \(choose from adamw, muon\)"),
        (["run.minutes=3"], "run: give either steps or minutes"),
        (["model.num_heads=0"], "model.num_heads: Input should be greater than 0"),
        (["model.num_heads=many"], "model.num_heads: Input should be a valid integer"),
        (["model.num_heads=16"], "head_size=1 must be even"),
        (["model.num_kv_heads=3"], "num_heads=2 is not a multiple of num_kv_heads=3"),
        (["run.forward_tokens=24"], "run.forward_tokens=24 must exceed data.length=24"),
        (
            ["objective.name=continuous", "objective.block_lengths=[4]"],
            "objective.block_lengths has no meaning when objective.name is 'continuous'",
        ),
        (["run=3"], "'run=3' is not of the form table.key=value"),
        (["run.steps"], "not of the form"),
    ],
)
def test_what_does_not_belong_is_refused(file: Path, settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_config(file, settings)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[data]", "[data", "is not TOML"),
        ("hidden_size = 16", "", "model.hidden_size is missing"),
        (
            'name = "ar"',
            "",
            r"objective.name is missing \(choose from ar, diffusion, joint, continuous, distill\)",
        ),
        ("[run]", "[walk]", "run is missing"),
        ("[model]", "model = 3\n[models]", "model: Input should be a valid dictionary"),
    ],
)
def test_a_broken_file_is_explained(file: Path, old: str, new: str, words: str) -> None:
    file.write_text(CONFIG.replace(old, new))
    with pytest.raises(UsageError, match=words):
        read_config(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.toml: No such file"):
        read_config(tmp_path / "none.toml")


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, unmask.training.config\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_keys_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_config_page", DOCS / "make_config_page.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (DOCS / "training-keys.md").read_text(encoding="utf-8") == maker.page(), "run `make docs`"


def test_the_examples_of_the_page_hold(tmp_path: Path) -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "example.toml").write_text(example)
    assert read_config(tmp_path / "example.toml").run.steps == 2000
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(code, "training.md", "exec")
