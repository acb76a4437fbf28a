"""What is shown of a text that sharpens out of noise."""

from io import StringIO

import pytest
from rich.console import Console
from tiny_models import byte_tokenizer

from unmask.cli.view import SURE, FillingCanvas, GrowingText, brightness
from unmask.decoding.generation import Snapshot

TOKENIZER = byte_tokenizer()
DECIDED, PROPOSED = TOKENIZER.encode("so "), TOKENIZER.encode("far")
SNAPSHOT = Snapshot(
    "denoise", tuple(DECIDED), tuple(PROPOSED), (1, 1, 1, 2, 3, 3), num_forwards=3, confidence=(0.1, 0.6, 1.0)
)


def grey(style: str) -> int:
    return int(style.removeprefix("color(").removesuffix(")"))


def test_a_continuous_canvas_is_as_bright_as_it_is_sure() -> None:
    canvas = FillingCanvas(TOKENIZER, Console(file=StringIO(), force_terminal=False))
    picture = canvas.picture(SNAPSHOT)
    assert picture.plain == "so far"
    styles = {span.start: str(span.style) for span in picture.spans}
    assert grey(styles[3]) < grey(styles[4])
    assert 5 not in styles  # as plain as decided text can be
    assert grey(brightness(0.0)) < grey(brightness(0.5)) < grey(brightness(SURE)) <= 255
    assert brightness(1.0) == ""


def test_proposals_of_a_continuous_model_are_not_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = GrowingText(TOKENIZER, (), ())
    text.show(SNAPSHOT)
    assert capsys.readouterr().out == "so "
