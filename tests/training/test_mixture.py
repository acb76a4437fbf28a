"""Sources and their weights, as the command line spells them."""

from pathlib import Path

import pytest

from unmask.errors import UsageError
from unmask.training.mixture import parse_mixture


def test_weights_are_read_and_one_makes_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_mixture(["a.txt", "org/name"]) == (("a.txt", "org/name"), None)
    assert parse_mixture(["a.txt:3", "org/name:0.5", "b.txt"]) == (
        ("a.txt", "org/name", "b.txt"),
        (3, 0.5, 1),
    )
    Path("odd:2").write_text("a file with a colon in its name")
    assert parse_mixture(["odd:2"]) == (("odd:2",), None)
    assert parse_mixture(["odd:2:4"]) == (("odd:2",), (4,))


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "two", ""])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    with pytest.raises(UsageError, match="no positive number"):
        parse_mixture([f"a.txt:{weight}"])
