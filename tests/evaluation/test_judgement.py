"""Judging a conversion: the numbers mean what they say, and a judgement that was cut off goes on."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_checkpoint

from command_line import Command
from unmask.decoding.generation import Generation, Snapshot
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.engine.side_by_side import side_by_side
from unmask.errors import UsageError
from unmask.evaluation.acceptance import Cycle, cycles_of, measure_acceptance
from unmask.evaluation.agreement import common_prefix, measure_agreement
from unmask.evaluation.average import average
from unmask.evaluation.canvas_blocks import CanvasBlocks
from unmask.evaluation.held_out import TextScore, score_window, windows_of_file, windows_of_texts
from unmask.evaluation.judgement import (
    JUDGEMENT_FILE,
    PROMPTS_FILE,
    TEXT_FILE,
    Judgement,
    judge,
)
from unmask.evaluation.judgement_config import JudgementConfig
from unmask.evaluation.ledger import Observer, StageProgress
from unmask.evaluation.prompts import all_prompts, first_prompts, kinds
from unmask.model.checkpoint import save_checkpoint
from unmask.model.conditioning import Conditioning
from unmask.model.denoiser import Denoiser

PROSE = "It was a bright cold day in April, and the clocks were all striking at once.\n" * 3


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


def test_an_average_is_a_ratio_of_totals() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0])
    plain = average(values.tolist(), [1] * 4)
    assert plain is not None
    assert plain.standard_error is not None
    assert plain.mean == values.mean()
    assert plain.standard_error == pytest.approx(values.std(ddof=1) / 2)
    doubled = average([*values, 3.0], [2, 2, 2, 2, 0])  # what has no size is no sample
    assert doubled == plain.scaled(0.5)
    assert average([1.0], [0]) is None
    assert str(average([3.0], [2])) == "1.50"


def test_the_error_of_a_ratio_is_its_spread_over_repetitions() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 10, (2000, 50))
    amounts = 2.0 * sizes + generator.normal(0, 1, sizes.shape) * sizes
    found = [average(a.tolist(), s.tolist()) for a, s in zip(amounts, sizes, strict=True)]
    means = [one.mean for one in found if one is not None]
    errors = [one.standard_error or 0.0 for one in found if one is not None]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


@pytest.mark.parametrize("max_tokens", [12, 25])
@pytest.mark.parametrize("block_length", [2, 5])
@pytest.mark.parametrize("stop", [(), tuple(range(0, 264, 5))], ids=["to the end", "stopped"])
def test_cycles_are_what_the_snapshots_show(
    model: LanguageModel, block_length: int, max_tokens: int, stop: tuple[int, ...]
) -> None:
    seen: Counter[bool] = Counter()
    for prompt in ("a", "hello", "what is it?"):
        options = Options(
            "speculative", block_length=block_length, max_tokens=max_tokens, stop_token_ids=stop
        )
        *snapshots, generation = model.stream(prompt, options)
        assert isinstance(generation, Generation)
        truth = []
        for draft, verified in pairwise(snapshots):
            assert isinstance(draft, Snapshot)
            assert isinstance(verified, Snapshot)
            if draft.phase == "draft":
                written = verified.token_ids[len(draft.token_ids) :]
                kept = common_prefix([token or 0 for token in draft.canvas], written)
                truth.append(Cycle(len(draft.canvas), kept, len(written)))
        assert list(cycles_of(generation, block_length, max_tokens)) == truth
        seen.update(cycle.num_written > cycle.num_kept for cycle in truth)
    assert seen[True]  # the verifier's own token was written somewhere


def test_acceptance_counts_whole_canvases_alone() -> None:
    cycles = [
        [Cycle(3, 3, 4), Cycle(3, 0, 1), Cycle(2, 2, 3)],
        [Cycle(3, 1, 2), Cycle(1, 0, 1)],
        [Cycle(3, 2, 2)],  # the text ended inside the draft
        [],
    ]
    found = measure_acceptance(cycles, 3)
    assert found is not None
    assert found.num_cycles == 4
    assert found.tokens_per_cycle.mean == 9 / 4
    assert found.tokens_per_cycle.num_samples == 3
    assert [share.mean for share in found.kept_by_place] == [3 / 4, 2 / 4, 1 / 4]
    assert measure_acceptance([[Cycle(2, 2, 3)]], 3) is None


def test_agreement_before_the_first_difference_and_overall() -> None:
    assert common_prefix([1, 2, 3], [1, 2]) == 2
    found = measure_agreement([[1, 2, 9, 4], [5, 6]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert found is not None
    assert found.before_difference.mean == 4 / 8
    assert found.overall.mean == 5 / 8


@pytest.mark.parametrize("shift", [True, False])
def test_blocks_of_the_bound_are_the_canvases_of_decoding(model: LanguageModel, shift: bool) -> None:
    denoiser = replace(model.denoiser, logit_shift=shift)
    blocks, mask = CanvasBlocks(denoiser), denoiser.mask_token_id
    assert mask is not None
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(256, (2, 11), generator=generator).repeat_interleave(2, 0)
    is_open = torch.rand(clean.shape, generator=generator) < 0.6
    starts = [2, 5, 8]
    is_open[:, 5:8] = torch.tensor([True, False, True])  # a last open token is left out of the forward
    noisy = clean.masked_fill(is_open, mask)
    wanted = noisy == mask
    wanted[:, :2] = False
    logits = torch.zeros(*clean.shape, denoiser.vocab_size)
    logits[wanted] = blocks(clean, noisy, torch.zeros(()), starts, wanted)
    for row in range(len(clean)):
        cache = denoiser.new_cache(11)
        denoiser.causal(clean[row, :1], 0, cache)
        for start, end in zip(starts, [5, 8, 11], strict=True):
            pending = clean[row, cache.lengths[0] : start].tolist()
            draft = denoiser.draft(pending, noisy[row, start:end], cache.lengths[0], cache)
            places = (noisy[row, start:end] == mask).nonzero()[:, 0]
            ours = logits[row, start + places]
            torch.testing.assert_close(ours, draft.logits[places][:, : ours.shape[-1]], atol=1e-5, rtol=1e-5)


def test_blocks_of_one_token_are_the_next_token_law(model: LanguageModel) -> None:
    window = windows_of_texts("prose", [PROSE[:60]], model.tokenizer)[0]
    canvases = {str(length): (CanvasBlocks(model.denoiser), length) for length in (1, 2)}
    score = score_window(window, model.denoiser, None, canvases, seed=0)
    assert score.bounds["1"] == pytest.approx(score.ar, rel=1e-5)
    assert score.bounds["2"] != pytest.approx(score.ar, rel=1e-5)
    assert (score.num_tokens, score.num_bytes) == (60, 60)


def test_a_changed_base_is_noticed(model: LanguageModel, tiny_model: Path) -> None:
    window = windows_of_texts("prose", [PROSE[:40]], model.tokenizer)[0]
    base = load(str(tiny_model), adapter="none")
    same = score_window(window, model.denoiser, base.denoiser, {}, seed=0)
    assert (same.base, same.is_unchanged) == (same.ar, True)
    with torch.no_grad():
        base.denoiser.transformer.norm.weight[0] += 1e-3
    other = score_window(window, model.denoiser, base.denoiser, {}, seed=0)
    assert other.base != other.ar
    score = TextScore.of([same, other])
    assert score.is_unchanged is False
    assert score.ar.bits_per_byte.mean == pytest.approx(score.ar.nats_per_token.mean / np.log(2))
    assert score.ar.perplexity.mean == pytest.approx(np.exp(same.ar / 40))


def test_models_whose_canvas_cannot_be_measured(model: LanguageModel) -> None:
    denoiser = model.denoiser
    with pytest.raises(UsageError, match="mask"):
        CanvasBlocks(Denoiser(denoiser.transformer))
    with pytest.raises(UsageError, match="time"):
        CanvasBlocks(replace(denoiser, conditioning=Conditioning(16, time=True, belief=False)))


def test_the_prompts() -> None:
    prompts = all_prompts()
    assert len(prompts) == len({" ".join(prompt.text.lower().split()) for prompt in prompts}) == 240
    assert set(Counter(prompt.kind for prompt in prompts).values()) == {40}
    assert kinds() == ("chat", "code", "prose", "list", "maths", "languages")
    tested = json.loads((Path(__file__).parents[1] / "decoding" / "prompts.json").read_text("utf-8"))
    assert not {prompt.text for prompt in prompts} & {entry["text"] for entry in tested}
    assert [prompt.kind for prompt in first_prompts(2)] == [*kinds(), *kinds()]
    assert first_prompts(1) == first_prompts(2)[:6]


def small(model: Path, text: Path | None = None, **changes: object) -> JudgementConfig:
    values: dict[str, Any] = {
        "model": str(model),
        "num_prompts": 1,
        "max_tokens": 6,
        "block_lengths": (2, 4),
        "thresholds": (0.5,),
        "texts": () if text is None else (str(text),),
        "text_tokens": 64,
        **changes,
    }
    return JudgementConfig(**values)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(f"{PROSE}<|doc|>\n{PROSE.upper()}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    folder = tmp_path_factory.mktemp("judged")
    return judge(small(tiny_model, text, against="untrained"), folder, lambda event: None)


def test_a_judgement(whole: Judgement) -> None:
    names = [scores.setting.name for scores in whole.settings]
    assert names == [
        "ar",
        "speculative, block 2",
        "speculative, block 2, against",
        "speculative, block 4",
        "speculative, block 4, against",
        "diffusion, threshold 0.5",
    ]
    for scores in whole.settings[1:5]:  # speculation writes the text of ar, whatever the adapter
        assert scores.overall.num_equal_to_ar == scores.overall.num_prompts == 6
        assert scores.unequal_prompts == ()
        assert scores.overall.acceptance is not None
    assert set(whole.settings[0].kinds) == set(kinds())
    (score,) = whole.texts
    assert score.is_unchanged is True
    assert score.num_windows == 1
    assert list(score.bounds) == [
        "diffusion, block 2",
        "diffusion, block 2, against",
        "diffusion, block 4",
        "diffusion, block 4, against",
    ]


def without_times(judgement: Judgement) -> dict[str, object]:
    fields = json.loads(json.dumps(judgement.to_json()))
    for setting in fields["settings"]:
        for scores in (setting["overall"], *setting["kinds"].values()):
            del scores["tokens_per_s"], scores["speed_over_ar"]
    return {name: value for name, value in fields.items() if name != "provenance"}


def test_prompts_side_by_side_give_what_they_give_alone(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """Every record: tokens, forwards and cycles, in all modes and for both models."""
    config = small(
        tiny_model, text, against="untrained", num_prompts=3, num_timed=1, num_diffusion=2, max_tokens=12
    )
    alone = judge(config, tmp_path / "alone", lambda event: None)
    with pytest.raises(KeyboardInterrupt):
        judge(config, tmp_path / "many", stop_at("prompts", 12), together=side_by_side)
    many = judge(config, tmp_path / "many", lambda event: None, together=side_by_side)

    def records(folder: str) -> list[dict[str, Any]]:
        lines = (tmp_path / folder / PROMPTS_FILE).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    for number, (one, other) in enumerate(zip(records("alone"), records("many"), strict=True)):
        assert one.keys() == other.keys()
        assert ("diffusion, threshold 0.5" in one["trials"]) == (number < 12)
        for name, trial in one["trials"].items():
            assert (other["trials"][name]["seconds"] is None) == (number >= 6)
            assert other["trials"][name] | {"seconds": 0} == trial | {"seconds": 0}
    for scores in many.settings:
        assert scores.overall.num_timed == 6
        assert scores.overall.tokens_per_s is not None
        assert scores.overall.num_prompts == (12 if scores.setting.mode == "diffusion" else 18)
    assert alone.settings[0].overall.num_timed == 18


def stop_at(stage: str, done: int) -> Observer:
    def observe(event: StageProgress) -> None:
        if (event.stage, event.done) == (stage, done):
            raise KeyboardInterrupt

    return observe


def test_a_judgement_that_was_cut_off_goes_on(
    tiny_model: Path, text: Path, whole: Judgement, tmp_path: Path
) -> None:
    config = small(tiny_model, text, against="untrained")
    for observe in (stop_at("text", 1), stop_at("prompts", 3)):
        with pytest.raises(KeyboardInterrupt):
            judge(config, tmp_path, observe)
    for name in (TEXT_FILE, PROMPTS_FILE):
        with (tmp_path / name).open("a") as lines:
            lines.write('{"number": 4, "ki')  # killed while writing
    stages = []
    judgement = judge(config, tmp_path, lambda event: stages.append((event.stage, event.done)))
    assert stages[0] == ("text", 1)
    assert ("prompts", 2) not in stages
    assert without_times(judgement) == without_times(whole)
    assert json.loads((tmp_path / JUDGEMENT_FILE).read_text("utf-8")) == json.loads(
        json.dumps(judgement.to_json())
    )
    before = (tmp_path / PROMPTS_FILE).read_text("utf-8")
    more = judge(replace(config, num_prompts=2), tmp_path, lambda event: None)
    assert (tmp_path / PROMPTS_FILE).read_text("utf-8").startswith(before)
    assert more.settings[0].overall.num_prompts == 12
    with pytest.raises(UsageError, match="max_tokens"):
        judge(replace(config, max_tokens=7), tmp_path, lambda event: None)


def test_another_adapter_is_another_judgement(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    with pytest.raises(KeyboardInterrupt):
        judge(small(copy, text), tmp_path / "out", stop_at("text", 0))
    adapter = load(str(copy)).denoiser.adapter
    assert adapter is not None
    with torch.no_grad():
        adapter.mask_embedding.add_(1.0)
    adapter.save(copy / "adapter", base="..")
    with pytest.raises(UsageError, match="fingerprints"):
        judge(small(copy, text), tmp_path / "out", lambda event: None)


def test_the_command(unmask_command: Command, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    options = ["--prompts", "1", "--max-tokens", "6", "--blocks", "4", "--thresholds", "0.5", "--text", text]
    result = unmask_command("judge", tiny_model, "--out", tmp_path, *options)
    assert result.status == 0, result.err
    assert "bit for bit" in result.out
    assert "6 of 6" in result.out
    assert {path.name for path in tmp_path.glob("*.png")} == {"acceptance.png", "agreement.png"}
    again = unmask_command("judge", tiny_model, "--out", tmp_path, *options, "--json")
    report = json.loads(again.out)
    assert report["settings"][1]["setting"]["name"] == "speculative, block 4"
    assert report == json.loads((tmp_path / JUDGEMENT_FILE).read_text("utf-8"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--blocks", "eight"], "--blocks"),
        (["--thresholds", "1.5"], "thresholds"),
        (["--prompts", "41"], "1 to 40"),
        (["--max-tokens", "9"], "at least 18"),
        (["--dtype", "int3"], "dtype"),
    ],
)
def test_wrong_options_are_refused(
    unmask_command: Command, tiny_model: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    result = unmask_command("judge", tiny_model, "--out", tmp_path / "out", *options)
    assert result.status == 2
    assert named in result.err
    assert not (tmp_path / "out").exists()


def test_a_missing_text_leaves_no_folder(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    result = unmask_command("judge", tiny_model, "--out", tmp_path / "out", "--text", tmp_path / "none.txt")
    assert result.status == 1
    assert "none.txt" in result.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_judged(unmask_command: Command, tmp_path: Path) -> None:
    save_checkpoint(tiny_checkpoint(), tmp_path / "base")
    result = unmask_command("judge", tmp_path / "base", "--out", tmp_path / "out")
    assert result.status == 2
    assert "canvas" in result.err


def test_a_run_folder_shows_its_curve(tiny_model: Path, whole: Judgement, tmp_path: Path) -> None:
    from unmask.evaluation.pictures import draw

    lines = [
        {"split": split, "step": step, "loss": 5.0 - step, "tokens_per_cycle": None}
        for step in range(3)
        for split in ("train", "held_out")
    ]
    curved = replace(whole, curve=tuple(lines))
    assert [path.name for path in draw(curved, tmp_path)] == [
        "acceptance.png",
        "agreement.png",
        "training.png",
    ]
    assert len(curved.to_json()["curve"]) == 3  # type: ignore[arg-type]
    assert asdict(curved)["curve"][0] == lines[0]


def test_a_run_is_judged_by_its_last_checkpoint(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    last = tmp_path / "run" / "step-00000010" / "model"
    shutil.copytree(tiny_model, last)
    (tmp_path / "run" / "step-00000009").mkdir()
    record = {"split": "held_out", "step": 0, "loss": 5.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record) + '\n{"split": "tr')
    config = small(tmp_path / "run", text, base=str(tiny_model), thresholds=(), block_lengths=(2,))
    judgement = judge(config, tmp_path / "out", lambda event: None)
    assert judgement.curve == (record,)
    assert judgement.texts[0].is_unchanged is True
    other = replace(config, model=str(last))
    assert judge(other, tmp_path / "again", lambda event: None).curve == (record,)


def test_a_text_without_documents_is_named(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short", encoding="utf-8")
    with pytest.raises(Exception, match=r"short\.txt has no document"):
        windows_of_file(path, model.tokenizer, num_tokens=100, seed=0)
