"""The frontier: its numbers are what the texts say, and it goes on where it was."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaged_tasks import write_data
from tiny_models import CONFIG, tiny_checkpoint

from command_line import Command
from unmask.decoding.language_model import LanguageModel, load
from unmask.engine.side_by_side import side_by_side
from unmask.errors import UsageError
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.frontier import Frontier, measure_frontier, rows
from unmask.evaluation.frontier_config import FrontierConfig
from unmask.evaluation.prompts import all_prompts, first_prompts
from unmask.evaluation.text_quality import TextJudge, distinct, diversity, unigram_entropy
from unmask.evaluation.together import in_turn
from unmask.evaluation.ways import Way, write
from unmask.model.checkpoint import save_checkpoint

SMALL = FrontierConfig(num_prompts=1, max_tokens=6, rules=("threshold:0.9", "top-k:3"))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


def measure(model: LanguageModel, config: FrontierConfig, folder: Path) -> Frontier:
    return measure_frontier(model, model, config, folder, tasks={})


def test_entropy_distinct_and_diversity() -> None:
    assert unigram_entropy([7, 7, 7]) == 0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == 2 / 4
    assert distinct([[1]], 2) == 0
    assert diversity([[1.0, 0.0]]) is None
    assert diversity([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) == pytest.approx(1 - 1 / 3)


def test_the_judge_reads_the_text_behind_the_prompt(model: LanguageModel) -> None:
    judged = TextJudge(model)("hi", "héllo")
    assert judged is not None
    assert judged.num_bytes == 6
    tokens = [*model.encode("hi"), *model.tokenizer.encode("héllo")]
    cache = model.denoiser.new_cache(len(tokens))
    laws = model.denoiser.causal(torch.tensor(tokens), 0, cache, num_heads=7).log_softmax(-1)
    nats = -sum(float(laws[i, token]) for i, token in enumerate(tokens[-6:]))
    assert judged.nats == pytest.approx(nats, rel=1e-5)
    assert math.hypot(*judged.state) == pytest.approx(1, abs=1e-3)
    assert TextJudge(model)("hi", "") is None


def test_the_numbers_are_those_of_the_texts(model: LanguageModel, tmp_path: Path) -> None:
    report = measure(model, SMALL, tmp_path / "out")
    names = [point.name for point in report.points]
    assert names == ["ar", "speculative", "threshold:0.9", "top-k:3"]
    assert report.judge["is_the_model_itself"]
    ar, speculative, _, thrice = report.points
    assert ar.as_ar is not None
    assert speculative.as_ar is not None
    assert ar.as_ar.overall.mean == speculative.as_ar.overall.mean == 1
    ways = [Way("diffusion", rule=rule) for rule in ("top-k:3", "top-k:1")]
    pairs = [write(model, model.encode(p.text), ways, max_tokens=6) for p in first_prompts(1)]
    texts, truths = zip(*pairs, strict=True)
    assert thrice.tokens_per_forward is not None
    assert thrice.tokens_per_forward.mean == sum(len(t.token_ids) for t in texts) / sum(
        t.num_decode_forwards for t in texts
    )
    equal = [
        sum(a == b for a, b in zip(text.token_ids, truth.token_ids, strict=False))
        for text, truth in zip(texts, truths, strict=True)
    ]
    places = [max(len(a.token_ids), len(b.token_ids)) for a, b in zip(texts, truths, strict=True)]
    assert thrice.as_serial is not None
    assert thrice.as_serial.overall.mean == sum(equal) / sum(places)
    table = list(csv.DictReader((tmp_path / "out" / "frontier.csv").read_text().splitlines()))
    assert [row["way"] for row in table] == names
    assert float(table[3]["as_serial"]) == thrice.as_serial.overall.mean


def test_it_goes_on_and_more_prompts_add_to_fewer(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(model, SMALL, tmp_path / "whole")
    lines = (tmp_path / "whole" / "writings.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "whole" / "writings.jsonl").write_text("".join(lines[:7]))
    again = measure(model, SMALL, tmp_path / "whole")
    for one, other in zip(whole.points, again.points, strict=True):
        assert one == other
    with pytest.raises(UsageError, match="max_tokens"):
        measure(model, replace(SMALL, max_tokens=7), tmp_path / "whole")
    parts = model.checkpoint
    other_stops = LanguageModel(replace(parts, card=replace(parts.card, stop_token_ids=(1,))))
    with pytest.raises(UsageError, match="stop_token_ids"):
        measure(other_stops, SMALL, tmp_path / "whole")
    changed = tuple(replace(prompt, text=f"{prompt.text}!") for prompt in all_prompts())
    monkeypatch.setattr("unmask.evaluation.prompts.all_prompts", lambda: changed)
    with pytest.raises(UsageError, match="prompts="):
        measure(model, SMALL, tmp_path / "whole")


def test_side_by_side_gives_what_one_after_the_other_does(model: LanguageModel, tmp_path: Path) -> None:
    config = replace(SMALL, temperatures=(0.0, 1.0))
    one, other = (
        measure_frontier(model, model, config, tmp_path / name, tasks={}, together=together)
        for name, together in (("turn", in_turn), ("side", side_by_side))
    )
    assert replace(one, provenance={}) == replace(other, provenance={})


def test_ways_are_compared_at_one_entropy(model: LanguageModel, tmp_path: Path) -> None:
    config = replace(SMALL, rules=("top-k:2",), temperatures=(0.5, 1.0, 4.0))
    report = measure(model, config, tmp_path / "out")
    ar = next(point for point in report.points if (point.way.mode, point.way.temperature) == ("ar", 1.0))
    assert ar.quality.entropy is not None
    assert ar.quality.bits_per_byte is not None
    assert report.entropy == ar.quality.entropy.mean
    assert report.reference == ar.name
    matched = {each.name: each for each in report.matched}
    assert set(matched) == {"ar", "speculative", "top-k:2"}
    assert matched["ar"].bits_per_byte is not None
    between = [
        point.quality.bits_per_byte.mean
        for point in report.points
        if point.way.mode == "ar" and point.quality.bits_per_byte is not None
    ]
    assert min(between) <= matched["ar"].bits_per_byte <= max(between)


def test_without_the_reference_temperatures_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="mode ar at temperature 1"):
        replace(SMALL, temperatures=(0.5, 0.8)).ways(model)
    assert replace(SMALL, temperatures=(0.5,)).ways(model)


def test_a_backbone_does_not_judge_its_own_texts(
    model: LanguageModel, tiny_model: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, max_tokens=3, rules=("top-k:3",))
    bare = load(str(tiny_model), adapter="none")
    assert fingerprint(bare) != fingerprint(model)
    report = measure_frontier(model, bare, config, tmp_path / "own", tasks={})
    assert report.judges_itself
    other = LanguageModel(tiny_checkpoint(replace(CONFIG, num_layers=1)))
    independent = measure_frontier(model, other, config, tmp_path / "other", tasks={})
    assert not independent.judges_itself
    headings = [rows(one)[0][3] for one in (report, independent)]
    assert headings == ["own_bits_per_byte", "bits_per_byte"]


def test_times_are_not_continued_on_another_machine(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = replace(SMALL, max_tokens=3, rules=("top-k:3",), lengths=(3,))
    measure(model, timed, tmp_path / "timed")
    monkeypatch.setattr("unmask.evaluation.provenance.processor_name", lambda: "another")
    with pytest.raises(UsageError, match="processor"):
        measure(model, timed, tmp_path / "timed")


def test_tasks_and_lengths_at_the_command_line(
    unmask_command: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    write_data(tmp_path / "cache")
    arguments = (
        "--prompts 1 --max-tokens 5 --rule top-k:2 --tasks lambada-written --limit 1 --lengths 3,6 --offline"
    ).split()
    done = unmask_command("frontier", tiny_model, "--out", tmp_path / "out", *arguments)
    assert done.status == 0, done.err
    assert "lambada-written" in done.out
    assert "the judge is the model itself" in done.err
    assert "own bits/byte" in done.out
    for name in ("frontier.png", "length.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    printed = unmask_command("frontier", tiny_model, "--out", tmp_path / "out", *arguments, "--json")
    report = json.loads(printed.out)
    times = {(time["series"], time["length"]): time["num_decode_forwards"] for time in report["times"]}
    assert times["ar", 6] == 5
    assert times["8 steps", 6] == 5  # one token from the prefill, five places, one forward each
    assert report["points"][0]["tasks"][0]["task"] == "lambada-written"


def test_a_model_that_no_rule_decodes_is_measured_by_its_sampler(tmp_path: Path) -> None:
    plain = tiny_checkpoint()
    card = replace(plain.card, attention="full", predicts_next=False, logit_shift=False, process="uniform")
    save_checkpoint(replace(plain, card=card), tmp_path / "uniform")
    model = load(str(tmp_path / "uniform"))
    config = FrontierConfig(num_prompts=1, max_tokens=4, block_length=4, steps=(1, 3))
    with pytest.raises(UsageError, match="cannot judge"):
        measure(model, config, tmp_path / "out")
    judge = LanguageModel(tiny_checkpoint(replace(CONFIG, num_layers=1)))
    report = measure_frontier(model, judge, config, tmp_path / "out", tasks={})
    assert not report.judge["is_the_model_itself"]
    assert [point.name for point in report.points] == [
        "ancestral, block 4, 1 steps",
        "ancestral, block 4, 3 steps",
    ]
    assert [point.forwards_per_text.mean for point in report.points if point.forwards_per_text] == [1, 3]
    assert all(point.as_ar is None and point.as_serial is None for point in report.points)
