"""Likelihoods of texts: every window once, the same for every model, in two units, and never measured twice."""

import json
import math
from pathlib import Path

import pytest
from tiny_models import byte_tokenizer, tiny_checkpoint

import unmask
from command_line import Command
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.canvas_likelihood import Bound
from unmask.evaluation.ledger import StageProgress
from unmask.evaluation.model_scorer import LIKELIHOODS, ModelScorer
from unmask.evaluation.text_likelihood import WINDOWS_FILE, text_likelihood, windows_of

AR = Options(mode="ar")
PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of folly. "
)
LIMIT = ("--limit", "2")


@pytest.fixture(scope="module")
def plain() -> LanguageModel:
    """A random autoregressive model of 64 positions; a token per byte."""
    return LanguageModel(tiny_checkpoint())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(PROSE * 5 + "\n<|doc|>\nAnother “document”: 🐋.\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("window", [1, 5, 7, 300])
def test_windows_hold_every_token_and_every_byte_once(window: int) -> None:
    tokenizer = unmask.load("tiny-ar").tokenizer
    documents = [PROSE, "He 🐋 said “no”.\n\n  naïve 你好", "é"]
    windows = list(windows_of("a", documents, tokenizer, window))
    ids = [token for document in documents for token in tokenizer.encode(document)]
    assert [token for each in windows for token in each.continuation.scored] == ids
    assert sum(each.num_bytes for each in windows) == len("".join(documents).encode())
    assert [each.number for each in windows] == list(range(len(windows)))
    assert windows[0].continuation.tokens[0] == tokenizer.eos_id
    assert all(len(each.continuation.tokens) <= window + 1 for each in windows)


def test_a_window_counts_the_bytes_that_its_tokens_spell() -> None:
    tokenizer = unmask.load("tiny-ar").tokenizer
    for each in windows_of("a", [PROSE], tokenizer, 4):
        assert each.num_bytes == len(tokenizer.decode(each.continuation.scored))


def test_the_units_are_those_of_the_whole_text(plain: LanguageModel, tmp_path: Path) -> None:
    texts = {"one": ["Whole text, a window."], "two": ["Ünother", "and a third"]}
    report = text_likelihood(plain, texts, tmp_path / "out", AR)
    scorer = ModelScorer(plain, AR)
    for found, documents in zip(report.texts, texts.values(), strict=True):
        nats = -sum(answer.nats for answer in scorer.loglikelihood_rolling(documents))
        num_bytes = sum(len(document.encode()) for document in documents)
        assert found.num_bytes == num_bytes
        assert found.likelihood.nats_per_token.mean * found.num_tokens == pytest.approx(nats, rel=1e-5)
        assert found.likelihood.bits_per_byte.mean == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
        assert found.noise_error is None
    assert report.total.num_windows == 3
    assert report.law == "exact"


def test_the_error_over_windows_is_that_of_a_ratio(plain: LanguageModel, tmp_path: Path) -> None:
    report = text_likelihood(plain, {"a": [PROSE]}, tmp_path, AR, window=13)
    rows = [json.loads(line) for line in (tmp_path / WINDOWS_FILE).read_text().splitlines()]
    found, count = report.total.likelihood.nats_per_token, len(rows)
    residuals = [row["nats"] - found.mean * row["num_tokens"] for row in rows]
    spread = sum(residual**2 for residual in residuals) * count / (count - 1)
    assert found.standard_error == pytest.approx(math.sqrt(spread) / report.total.num_tokens)
    assert found.num_samples == count == math.ceil(len(byte_tokenizer().encode(PROSE)) / 13)


def test_the_shipped_models_are_measured_on_the_same_windows(unmask_command: Command, text: Path) -> None:
    found = {}
    for name, likelihood in [
        ("tiny-ar", "ar"),
        ("tiny-masked", "bound:4"),
        ("tiny-continuous", "bound:4"),
        ("tiny-continuous", "flow:8,2"),
    ]:
        words = ("--likelihood", likelihood, "--window", "24", *LIMIT, "--json")
        done = unmask_command("eval", name, "--text", text, *words)
        assert done.status == 0, done.err
        report = json.loads(done.out)
        assert report["likelihood"] == likelihood
        assert {"command", "processor", "commit"} <= set(report["provenance"])
        found[name, likelihood] = report
    same = [
        (report["settings"]["tokenizer"], report["settings"]["texts"], report["total"]["num_bytes"])
        for report in found.values()
    ]
    assert all(each == same[0] for each in same)
    assert found["tiny-ar", "ar"]["law"] == "exact"
    assert found["tiny-ar", "ar"]["total"]["noise_error"] is None
    for key, report in found.items():
        assert 1 < report["total"]["likelihood"]["nats_per_token"]["mean"] < math.log(512), key
        assert (report["total"]["noise_error"] is None) == (key[1] == "ar")


def test_without_a_likelihood_it_is_that_of_the_models_own_way(
    unmask_command: Command, tiny_model: Path, text: Path
) -> None:
    for words, wanted in [
        ((tiny_model,), "by ar: exact"),
        ((tiny_model, "--mode", "diffusion", "--block-length", "2"), "by bound:32: an upper bound"),
        (("tiny-masked", "--window", "8"), "by bound:32: an upper bound"),
    ]:
        done = unmask_command("eval", *words, "--text", text, "--limit", "1")
        assert done.status == 0, done.err
        assert wanted in done.out
        assert "bits/byte" in done.out


def test_a_run_that_was_cut_off_goes_on(plain: LanguageModel, tmp_path: Path) -> None:
    texts = {"a": [PROSE], "b": [PROSE[::-1]]}

    def cut(progress: StageProgress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text_likelihood(plain, texts, tmp_path / "cut", AR, window=20, limit=2, observe=cut)
    begun = (tmp_path / "cut" / WINDOWS_FILE).read_text()
    assert len(begun.splitlines()) == 3
    report = text_likelihood(plain, texts, tmp_path / "cut", AR, window=20)  # and a larger limit
    assert (tmp_path / "cut" / WINDOWS_FILE).read_text().startswith(begun)
    whole = text_likelihood(plain, texts, tmp_path / "whole", AR, window=20)
    assert [text.likelihood for text in report.texts] == [text.likelihood for text in whole.texts]
    assert report.total.num_windows == whole.total.num_windows > 4


def test_a_folder_is_for_one_text_and_one_likelihood(plain: LanguageModel, tmp_path: Path) -> None:
    text_likelihood(plain, {"a": [PROSE]}, tmp_path, AR)
    with pytest.raises(UsageError, match=r"texts\.a="):
        text_likelihood(plain, {"a": ["other"]}, tmp_path, AR)
    with pytest.raises(UsageError, match="window=63, not 10"):
        text_likelihood(plain, {"a": [PROSE]}, tmp_path, AR, window=10)


@pytest.mark.parametrize("window", [0, 64])
def test_a_window_has_to_fit_the_model(window: int, plain: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"window={window} must be between 1 and 63"):
        text_likelihood(plain, {"a": [PROSE]}, tmp_path, AR, window=window)


@pytest.mark.parametrize("spelled", ["ar", "bound:7", "duel", "flow:3,4"])
def test_a_likelihood_is_spelled_as_it_is_read(spelled: str) -> None:
    assert LIKELIHOODS.spell(LIKELIHOODS.parse(spelled)) == spelled
    assert LIKELIHOODS.spell(Bound()) == "bound:32"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("tiny-ar --text missing.txt", 1, "cannot read missing.txt"),
        ("tiny-ar --text empty.txt", 2, "empty.txt holds no text"),
        ("tiny-ar --text text.txt --text text.txt", 2, "given twice"),
        ("tiny-ar --text text.txt --tasks piqa", 2, "--tasks and --text were both given"),
        ("tiny-ar --text text.txt --temperature 1", 2, "--temperature changes nothing"),
        ("tiny-masked --text text.txt --rule top-k:2", 2, "--rule changes nothing"),
        ("tiny --mode speculative --tree-size 4 --text text.txt", 2, "--tree-size changes nothing"),
        ("tiny-ar --text text.txt --compare", 2, "--compare is for tables of tasks"),
        ("tiny-ar --tasks piqa --out x --window 3", 2, "--window is for texts"),
        ("tiny-ar --text text.txt --limit 0", 2, "limit=0 must be at least 1"),
        ("tiny-ar --text text.txt --likelihood bound", 2, "this model has no mask token"),
        ("tiny-masked --text text.txt --likelihood ar", 2, "was not trained to predict next tokens"),
        ("tiny-masked --text text.txt --likelihood flow", 2, "noise is on tokens"),
        ("tiny-continuous --text text.txt --likelihood duel", 2, "noise is Gaussian"),
    ],
)
@pytest.mark.usefixtures("text")
def test_what_cannot_be_measured_is_refused_by_name(
    words: str,
    status: int,
    said: str,
    unmask_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    refused = unmask_command("eval", *words.split())
    assert (refused.status, refused.out) == (status, "")
    assert said in refused.err
