"""``unmask convert`` from the command line to a folder that generates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import CONFIG, tiny_checkpoint

from unmask.cli.main import main
from unmask.model.checkpoint import save_checkpoint

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
    # 24 documents are held out; 8 rows a batch and 48 tokens a row leave too few, which is said before any step.
    assert main(["convert", base, "--out", out, *SMALL]) == 1
    assert "too few" in capsys.readouterr().err
    out = str(tmp_path / "more")
    more = [*SMALL, "--synthetic-tokens", "1500", "--json"]
    assert main(["convert", base, "--out", out, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [record["step"] for record in report["held_out"]] == [0, 2]
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
    assert json.loads((tmp_path / "second" / "unmask.json").read_text())["base"] == base
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
