"""``unmask convert`` from the command line to a folder that generates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from tiny_models import CONFIG, tiny_checkpoint

from unmask.cli.main import app, main
from unmask.model.checkpoint import save_checkpoint
from unmask.model.run_checkpoints import last_model
from unmask.training.conversion_config import ConversionConfig, FrozenRecipe

SMALL = (
    "--synthetic-tokens 200 --length 48 --batch-documents 2 --synthesis-rows 8 --set rank=2 --steps 2 --judge 0"
).split()


def without_rank(options: list[str]) -> list[str]:
    """Leave out the setting that only the frozen recipe has."""
    place = options.index("--set")
    return [*options[:place], *options[place + 2 :]]


@pytest.fixture
def base(tmp_path: Path) -> str:
    save_checkpoint(tiny_checkpoint(), tmp_path / "base")
    return str(tmp_path / "base")


def test_convert_then_generate(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    # 24 documents are held out; 8 rows a batch and 48 tokens a row leave too few, which is said before any is written.
    assert main(["convert", base, "--out", out, *SMALL]) == 2
    assert "too few" in capsys.readouterr().err
    more = [*SMALL, "--synthetic-tokens", "1500", "--json"]
    assert main(["convert", base, "--out", out, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [record["step"] for record in report["held_out"]] == [0, 2]
    assert report["model"] == str(Path(out) / "step-00000002" / "model")
    command = ["generate", out, "hello", "--mode", "speculative", "--max-tokens", "8", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_tokens"] <= 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "5", "--minutes", "1"], "either steps or minutes"),
        (["--set", "drafting_share=2"], "--set drafting_share"),
        (["--set", "ranc=2"], "did you mean 'rank'?"),
        (["--set", "targets=['q', 'r']"], "--set targets"),
        (["--set", "warmup_step=2"], "did you mean 'warmup_steps'?"),
        (["--set", "warmup_steps=-1"], "--set warmup_steps"),
        (["--set", "seed=1"], "unknown setting of recipe 'frozen' 'seed'"),
        (["--set", "rank"], "not of the form KEY=VALUE"),
        (["--recipe", "joint", "--set", "rank=2"], "unknown setting of recipe 'joint' 'rank'"),
        (["--recipe", "frosen"], "did you mean 'frozen'?"),
        (["--dtype", "int3"], "--dtype"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "no-such-model", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_every_setting_of_a_run_can_be_given(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no option is a setting, and decides the run as the Python API would."""
    plain = {"warmup_steps": 3, "decay_share": 0.25, "held_out_documents": 4, "save_every": 1}
    settings = [word for key, value in plain.items() for word in ("--set", f"{key}={value}")]
    assert main(["convert", base, "--out", str(tmp_path / "out"), *SMALL, *settings]) == 0
    config = ConversionConfig.model_validate_json((tmp_path / "out" / "conversion.json").read_text())
    assert config.model_dump(include=set(plain)) == plain
    assert isinstance(config.recipe, FrozenRecipe)
    assert config.recipe.rank == 2
    assert config.block_lengths == ConversionConfig.model_fields["block_lengths"].default == (4, 8, 16, 32)
    options = {option.name for option in typer.main.get_command(app).commands["convert"].params}  # type: ignore[attr-defined]
    assert ConversionConfig.model_fields.keys() - options == {*plain, "texts", "text_weights"}


def test_several_processes_are_refused(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["convert", base, "--out", str(tmp_path / "out"), *SMALL]) == 2
    assert "WORLD_SIZE is 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_text_is_named(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.txt")
    assert main(["convert", base, "--out", str(tmp_path / "out"), "--text", missing, *SMALL]) == 1
    assert "missing.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_folder_is_tuned_and_both_belong_to_the_base(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    more = [*SMALL, "--synthetic-tokens", "1500"]
    assert main(["convert", base, "--out", first, *more]) == 0
    assert main(["convert", first, "--recipe", "drafter", "--out", second, *without_rank(more)]) == 0
    card = Path(last_model(second)) / "unmask.json"
    assert json.loads(card.read_text())["base"] == base
    assert main(["generate", second, "hello", "--mode", "speculative", "--max-tokens", "4"]) == 0
    assert (
        main(["convert", base, "--recipe", "drafter", "--out", str(tmp_path / "none"), *without_rank(more)])
        == 2
    )
    assert "has no adapter to tune" in capsys.readouterr().err


def test_a_conversion_ends_in_a_judgement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = str(tmp_path / "roomy"), tmp_path / "out"
    save_checkpoint(tiny_checkpoint(replace(CONFIG, max_positions=640)), tmp_path / "roomy")
    options = [
        *without_rank(SMALL),
        "--synthetic-tokens",
        "1500",
        "--judge",
        "1",
        "--recipe",
        "joint",
        "--json",
    ]
    assert main(["convert", base, "--out", str(out), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["judgement"] == json.loads((out / "judgement" / "judgement.json").read_text())
    assert report["judgement"]["texts"]
