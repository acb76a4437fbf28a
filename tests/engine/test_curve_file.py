"""A cost curve comes back from disk as it was, and a file that is not to be trusted is measured again."""

from pathlib import Path

import pytest

from random_denoisers import letter_tokenizer, random_denoiser
from unmask.engine.cost_curve import CostCurve
from unmask.engine.curve_file import CurveFile
from unmask.engine.engine import Engine

KEY = {"model": "small", "threads": "2"}
CURVE = CostCurve([(1, 0.01), (8, 0.02), (64, 0.1)])


def test_a_curve_comes_back(tmp_path: Path) -> None:
    file = CurveFile.of(tmp_path, KEY)
    assert file.read() is None
    file.write(CURVE)
    found = CurveFile.of(tmp_path, dict(reversed(KEY.items()))).read()
    assert found is not None
    assert found.to_json() == CURVE.to_json()
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def test_another_key_has_another_file(tmp_path: Path) -> None:
    file, other = CurveFile.of(tmp_path, KEY), CurveFile.of(tmp_path, KEY | {"threads": "1"})
    file.write(CURVE)
    assert other.read() is None
    file.path.rename(other.path)
    assert other.read() is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"key": {"model": "small", "threads": "2"}}',
        '{"key": {"model": "small", "threads": "2"}, "measurements": []}',
        '{"key": {"model": "small", "threads": "2"}, "measurements": [[1, 1, -1], [1, 8, 2]]}',
        '{"key": {"model": "small", "threads": "2"}, "measurements": [[1, 1, "a"], [1, 8, 2]]}',
        '{"key": {"model": "small", "threads": "2"}, "measurements": [[1, 1], [1, 8, 2]]}',
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    file = CurveFile.of(tmp_path, KEY)
    file.write(CURVE)
    file.path.write_text(content)
    assert file.read() is None


def test_a_disk_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cost-curves").write_text("a file where the folder should be")
    CurveFile.of(tmp_path, KEY).write(CURVE)
    assert CurveFile.of(tmp_path, KEY).read() is None


def test_an_engine_measures_once(tmp_path: Path) -> None:
    file = CurveFile.of(tmp_path, KEY)
    curves = []
    for _ in range(2):
        engine = Engine(random_denoiser(), letter_tokenizer(), num_pages=8)
        engine.calibrate(file)
        curves.append(engine.planner.curve.to_json())
    assert curves[0] == curves[1]
