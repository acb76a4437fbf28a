"""The engine against the reference loop: the same tokens, whatever runs beside a request and wherever its pages lie."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import mixes
import pytest
import torch
from mixes import TOKENIZER, denoiser_of, differences, essence, play, random_mix
from torch import Tensor

from unmask.decoding.candidates import Keys
from unmask.decoding.generate import generate
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import LeftToRight
from unmask.decoding.samplers import Ancestral
from unmask.diffusion.process import build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.engine.cost_curve import CostCurve
from unmask.engine.engine import Engine, Finished, Progress
from unmask.engine.job import Job
from unmask.engine.paged_cache import PagedRows
from unmask.engine.pages import PageTable
from unmask.engine.planner import STEP, Choice, Planner, Way
from unmask.engine.request import Request
from unmask.engine.runner import Runner
from unmask.errors import UsageError
from unmask.layout import Layout, Segment
from unmask.model import merged, quantize
from unmask.model.cache import Cache
from unmask.model.denoiser import Denoiser
from unmask.model.kernels import kernels
from unmask.model.merged import merge
from unmask.model.packed import Packed, Part
from unmask.model.quantize import int8_product
from unmask.model.transformer import Transformer
from unmask.rng import Stream

PROMPT = (5, 9, 3, 14)


def engine_of(kind: int = 0, **sizes: int) -> Engine:
    wanted: dict[str, Any] = {"num_pages": 64, "page_size": 4, **sizes}
    return Engine(denoiser_of(kind), TOKENIZER, **wanted)


@cache
def exact_denoiser_of(kind: int) -> Denoiser:
    """Return one of the models of mixes on compiled kernels, where rounding does not depend on what runs beside."""
    plain = denoiser_of(kind)
    transformer, adapter = merge(plain.transformer, plain.adapter)
    assert transformer.exact
    return replace(plain, transformer=transformer, adapter=adapter)


def options_of(mode: Mode, **changes: Any) -> Options:
    return replace(Options(mode, max_tokens=12, block_length=None if mode == "ar" else 4), **changes)


def faults_of(seed: int) -> Sequence[str]:
    kind, mix = random_mix(seed)
    return differences(kind, mix, play(mix))


@pytest.mark.parametrize("seed", range(30))
def test_a_random_mix_writes_what_the_reference_loop_writes(seed: int) -> None:
    assert faults_of(seed) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_hundred_random_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On compiled kernels where they are there, so that no tie can turn."""
    if kernels() is not None:
        monkeypatch.setattr(mixes, "truth", cache(mixes.truth.__wrapped__))
        monkeypatch.setattr(mixes, "denoiser_of", exact_denoiser_of)
    num_preemptions = num_answers = num_aborted = 0
    for seed in range(1000, 1300):
        kind, mix = random_mix(seed)
        played = play(mix)
        assert differences(kind, mix, played) == [], f"mix {seed}"
        num_preemptions += played.num_preemptions
        num_answers += sum(generation is not None for generation in played.generations)
        num_aborted += sum(generation is None for generation in played.generations)
    assert num_preemptions > 40, "the pools are not tiny"
    assert num_aborted > 60
    assert num_answers > 900


def _write_a_page_off(patch: pytest.MonkeyPatch) -> None:
    write = PagedRows.write

    def wrong(self: PagedRows, layer: int, rows: slice, start: int, *rest: Any) -> None:
        size = self._cache.page_size
        write(self, layer, rows, start - size if start >= size else start, *rest)

    patch.setattr(PagedRows, "write", wrong)


def _trust_stale_pages(patch: pytest.MonkeyPatch) -> None:
    """A request that was preempted takes pages as they come for the ones it had."""
    clear, adopt = PageTable.clear, PageTable.adopt
    had: dict[PageTable, int] = {}

    def wrong_clear(self: PageTable) -> None:
        had[self] = max(had.get(self, 0), len(self.pages) - 1)
        clear(self)

    def wrong_adopt(self: PageTable, tokens: Sequence[int]) -> int:
        found = adopt(self, tokens)
        claimed = min(had.get(self, 0), self.pool.num_available) * self.pool.page_size
        if found >= claimed:
            return found
        self.reserve(claimed)
        return claimed

    patch.setattr(PageTable, "clear", wrong_clear)
    patch.setattr(PageTable, "adopt", wrong_adopt)


def _key_noise_by_request(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Job, length: int, stream: Stream) -> Any:
        places = range(self.request.base, self.request.base + length)
        return Keys.of_one(self.request.number, places, self.request.decode_number).noise(stream)[0]

    patch.setattr(Job, "noise", wrong)


def _change_segments(patch: pytest.MonkeyPatch, change: Callable[[Segment], Segment]) -> None:
    """Change what the engine runs, and leave the reference loop alone."""
    laws, append = Denoiser.laws, Packed._append

    def wrong_append(self: Packed, segment: Segment, tokens: Sequence[int]) -> None:
        append(self, change(segment), tokens)

    def wrong_laws(self: Denoiser, parts: Sequence[Part], cache: Cache) -> tuple[Tensor, ...]:
        with pytest.MonkeyPatch.context() as inner:
            if isinstance(cache, PagedRows):
                inner.setattr(Packed, "_append", wrong_append)
            return laws(self, parts, cache)

    patch.setattr(Denoiser, "laws", wrong_laws)


def _adapt_verifications(patch: pytest.MonkeyPatch) -> None:
    _change_segments(
        patch, lambda made: replace(made, adapter=made.adapter or (made.length > 1 and made.start > 6))
    )


def _see_backwards_only(patch: pytest.MonkeyPatch) -> None:
    _change_segments(patch, lambda made: replace(made, causal=True))


def _count_chunks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Request, "decode_number", property(lambda self: self.num_forwards if self.written.token_ids else 0)
    )


def _keep_rejected_drafts(patch: pytest.MonkeyPatch) -> None:
    accept = Request.accept

    def wrong(self: Request, num_accepted: int, next_token: int) -> None:
        end = self.num_decided + len(self.drafts)
        accept(self, num_accepted, next_token)
        self.num_stored = min(end, self.num_decided)

    patch.setattr(Request, "accept", wrong)


def _keep_rejected_candidates(patch: pytest.MonkeyPatch) -> None:
    """What the trunk stored passes for what was accepted beside it."""
    accept_path = Request.accept_path

    def wrong(self: Request, accepted: Sequence[int], next_token: int, *, num_stored: int) -> None:
        accept_path(self, accepted, next_token, num_stored=min(len(accepted), len(self.drafts)))

    patch.setattr(Request, "accept_path", wrong)


FAULTS = {
    "slot off by a page": _write_a_page_off,
    "stale cache after preemption": _trust_stale_pages,
    "noise keyed by request": _key_noise_by_request,
    "adapter on in verification": _adapt_verifications,
    "canvases causal": _see_backwards_only,
    "chunks counted as decode forwards": _count_chunks,
    "rejected drafts kept": _keep_rejected_drafts,
    "rejected candidates kept": _keep_rejected_candidates,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    FAULTS[name](monkeypatch)
    for seed in range(40):
        try:
            if faults_of(seed):
                return
        except (AssertionError, ValueError, IndexError):
            return
    pytest.fail("forty mixes passed")


@pytest.mark.parametrize("kind", [0, 4])
def test_a_request_writes_the_same_alone_and_among_31_others(kind: int) -> None:
    generator = random.Random(kind)
    requests = [
        (
            tuple(generator.randint(2, 9) for _ in range(generator.randint(1, 24))),
            mixes.random_options(generator, predicts_next=True),
        )
        for _ in range(32)
    ]
    together = engine_of(kind, num_pages=400, token_budget=300).generate(requests)
    for request, among_others in zip(requests, together, strict=True):
        (alone,) = engine_of(kind).generate([request])
        assert essence(alone) == essence(among_others)


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that grows by (tokens, laws) with every forward of a backbone."""
    seen: list[tuple[int, int]] = []
    forward, logits = Transformer.forward, Transformer.logits

    def counted(self: Transformer, inputs: torch.Tensor, layout: Layout, *rest: Any) -> torch.Tensor:
        seen.append((layout.num_tokens, 0))
        return forward(self, inputs, layout, *rest)

    def headed(self: Transformer, hidden: torch.Tensor) -> torch.Tensor:
        seen[-1] = (seen[-1][0], seen[-1][1] + len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(Transformer, "forward", counted)
    monkeypatch.setattr(Transformer, "logits", headed)
    return seen


def test_a_step_is_one_forward_for_all_modes_and_the_head_runs_where_it_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(kind=3, token_budget=20)  # no logit shift
    for mode in MODES:
        engine.add(PROMPT, options_of(mode, rule=LeftToRight(2) if mode == "diffusion" else None))
    engine.add((2, 3) * 10, options_of("ar"))
    seen = count_forwards(monkeypatch)
    for _ in range(3):
        engine.step()
    assert seen == [
        (3 * 4 + 8, 3),  # three ends of prefills, and a chunk
        (1 + (1 + 4) + (1 + 4) + 9, 1 + 4 + 4),  # step, denoise, a draft that begins by the AR law; a chunk
        (1 + 4 + 4 + 3, 1 + 2 + 4 + 1),  # step, denoise with two places open, verify; the end of a prefill
    ]


def test_events_tell_every_token_once_and_what_is_open() -> None:
    engine = engine_of()
    ids = {engine.add(PROMPT, options_of(mode, max_tokens=10)): mode for mode in MODES}
    told: dict[int, list[int]] = {number: [] for number in ids}
    canvases: dict[Mode, int] = dict.fromkeys(MODES, 0)
    drafted: dict[Mode, int] = dict.fromkeys(MODES, 0)
    while engine.has_work:
        for event in engine.step():
            match event:
                case Progress(number, token_ids, canvas, drafts):
                    told[number] += token_ids
                    canvases[ids[number]] += bool(canvas)
                    drafted[ids[number]] += bool(drafts)
                    assert not canvas or canvas[0] is None, "what leads is decided"
                case Finished(number, generation):
                    assert tuple(told[number]) == generation.token_ids
                    assert set(generation.seconds) == {"waiting", "prefill", "decode"}
                    assert min(generation.seconds.values()) >= 0
                    assert generation.mode == ids.pop(number)
    assert not ids
    assert canvases["diffusion"] > 0
    assert drafted["speculative"] > 0
    assert canvases["ar"] == canvases["speculative"] == drafted["ar"] == drafted["diffusion"] == 0
    assert engine.step() == []


def test_a_trees_verification_is_one_forward_with_pre_drafts_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(kind=3)  # no logit shift
    engine.add(PROMPT, options_of("speculative", tree_size=5, num_predrafts=2, max_tokens=30))
    seen = count_forwards(monkeypatch)
    for _ in range(3):
        engine.step()
    assert seen == [(4, 1), (1 + 4, 4), (5 + 2 * 4, 5 + 2 * 3)]


def test_a_prompt_seen_before_costs_one_short_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(token_budget=64)
    prompt = (2, 3, 4, 5) * 10
    engine.generate([(prompt, options_of("ar", max_tokens=1))])
    seen = count_forwards(monkeypatch)
    engine.generate([((*prompt, 7), options_of("diffusion", max_tokens=1))])
    assert seen == [(1, 1)]


def test_abort_returns_pages_at_any_time() -> None:
    engine = engine_of(page_size=1, num_pages=80, token_budget=6, max_requests=3)
    for steps in range(12):
        ids = [engine.add(PROMPT, options_of(mode, max_tokens=70)) for mode in (*MODES, "ar")]
        for _ in range(steps):
            engine.step()
        for number in reversed(ids):
            engine.abort(number)
            engine.check()
        assert not engine.has_work
        assert engine.scheduler.pool.num_available == 80


def test_only_requests_that_are_here_can_be_aborted() -> None:
    engine = engine_of()
    with pytest.raises(UsageError, match="request 0 is not here"):
        engine.abort(0)
    engine.generate([(PROMPT, options_of("ar"))])
    with pytest.raises(UsageError, match="request 0 is not here"):
        engine.abort(0)


@pytest.mark.parametrize(
    ("prompt", "options", "sizes", "message"),
    [
        ((), options_of("ar"), {}, "the prompt has no tokens"),
        (
            PROMPT,
            options_of("speculative", tree_size=9, num_predrafts=2),
            {"token_budget": 17},
            "its tree and its pre-drafts need forwards of 18 tokens",
        ),
        (PROMPT, options_of("ar", max_tokens=500), {"num_pages": 8}, "need 32 pages; the engine has 8"),
        (PROMPT, options_of("diffusion", block_length=40), {"token_budget": 40}, "token_budget is 40"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(
    prompt: tuple[int, ...], options: Options, sizes: dict[str, int], message: str
) -> None:
    engine = engine_of(**sizes)
    with pytest.raises(UsageError, match=message):
        engine.add(prompt, options)
    assert not engine.has_work
    engine.check()


def test_what_the_engine_does_not_decode_is_refused_by_name() -> None:
    masked = replace(denoiser_of(3), process=build_process("masked", 32, 32, SCHEDULES.parse("linear")))
    with pytest.raises(UsageError, match=r"sampler Ancestral.*: the engine fills masks by rules"):
        Engine(masked, TOKENIZER, num_pages=8).add(PROMPT, options_of("diffusion", sampler=Ancestral()))
    uniform = build_process("uniform", 32, None, SCHEDULES.parse("linear"))
    maskless = Engine(replace(masked, mask_token_id=None, process=uniform), TOKENIZER, num_pages=8)
    for options in (options_of("diffusion"), options_of("diffusion", rule=LeftToRight())):
        with pytest.raises(UsageError, match="the engine fills masks by rules"):
            maskless.add(PROMPT, options)
    with pytest.raises(UsageError, match="sees whole texts"):
        Engine(replace(denoiser_of(3), full_attention=True), TOKENIZER, num_pages=8)


class FixedCurve(CostCurve):
    """A curve that nothing changes any more."""

    def __init__(self, *measurements: tuple[int, float]) -> None:
        super().__init__(measurements)
        self.observe = lambda tokens, seconds: None  # type: ignore[method-assign]


@pytest.mark.parametrize(("slope", "drafts"), [(1e-6, True), (1.0, False)])
def test_planned_requests_write_the_greedy_text_whatever_the_plan(slope: float, drafts: bool) -> None:
    engine = Engine(
        denoiser_of(1),
        TOKENIZER,
        num_pages=30,
        page_size=3,
        max_requests=4,
        planner=Planner(FixedCurve((1, 1.0), (2, 1.0 + slope), (64, 1.0 + 63 * slope))),
    )
    prompts = [(*PROMPT[: 1 + seed % 4], seed) for seed in range(2, 8)]
    options = options_of("auto", block_length=8, max_tokens=20)
    places = {engine.add(prompt, options): prompt for prompt in prompts}
    other = engine.add(PROMPT, options_of("diffusion"))
    num_cycles = 0
    ways: set[Way] = set()
    while engine.has_work:
        events = engine.step()
        if engine.choice is not None:
            ways |= set(engine.choice.ways.values())
        for event in events:
            if isinstance(event, Finished) and event.request_id != other:
                wanted = generate(
                    denoiser_of(1), TOKENIZER, places[event.request_id], options_of("ar", max_tokens=20)
                )
                assert event.generation.token_ids == wanted.token_ids
                assert event.generation.mode == "auto"
                num_cycles += len(event.generation.accepted_lengths)
        engine.check()
    assert (num_cycles > 0) == drafts
    assert any(way.branching and way.num_predrafts for way in ways) == drafts


@pytest.mark.parametrize("compiled", [True, False])
def test_in_int8_only_what_writes_the_text_of_ar_to_the_bit_is_planned(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        for module in (merged, quantize):
            monkeypatch.setattr(module, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no compiled kernels")
    plain = denoiser_of(1)
    transformer, adapter = merge(plain.transformer, plain.adapter, int8_product, exact_rows=True)
    denoiser = replace(plain, transformer=transformer, adapter=adapter)
    planner = Planner(FixedCurve((1, 1.0), (64, 1.0)))  # where a tree is for nothing
    engine = Engine(denoiser, TOKENIZER, num_pages=30, page_size=3, max_requests=4, planner=planner)
    prompts = [(*PROMPT[: 1 + seed % 4], seed) for seed in range(2, 8)]
    places = {engine.add(prompt, options_of("auto", max_tokens=20)): prompt for prompt in prompts}
    ways: set[Way] = set()
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Finished):
                wanted = generate(
                    denoiser, TOKENIZER, places[event.request_id], options_of("ar", max_tokens=20)
                )
                assert event.generation.token_ids == wanted.token_ids
        ways |= set(engine.choice.ways.values() if engine.choice else ())
    assert any(way.block_length for way in ways)
    assert all(way.is_linear for way in ways) != compiled  # in kernels of ours trees are as exact as all else


class Whims(Planner):
    """A planner that wants something else every time, in the middle of chains of pre-drafts too."""

    generator = random.Random(0)

    def choose(self, limits: Mapping[int, int]) -> Choice:
        def any_way(limit: int) -> Way:
            way = Way(self.generator.randint(0, 8), *(self.generator.choice([0, 2, 4]) for _ in range(2)))
            return way.within(limit) if way.block_length and limit else STEP

        return Choice({number: any_way(limit) for number, limit in limits.items()}, 1.0)


@pytest.mark.parametrize("kind", [1, 3])
def test_a_plan_that_changes_all_the_time_changes_no_greedy_text(kind: int) -> None:
    planner = Whims(FixedCurve((1, 1.0), (2, 1.0)))
    engine = Engine(denoiser_of(kind), TOKENIZER, num_pages=30, page_size=3, max_requests=4, planner=planner)
    prompts = [(*PROMPT[: 1 + seed % 4], seed) for seed in range(2, 10)]
    answers = engine.generate([(prompt, options_of("auto", max_tokens=24)) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = generate(denoiser_of(kind), TOKENIZER, prompt, options_of("ar", max_tokens=24))
        assert answer.token_ids == wanted.token_ids
    seen = planner.overall
    assert seen.acceptance(2, ahead=True).version > seen.acceptance(2).version > 0
    engine.check()


def test_calibration_measures_forwards_and_planning_is_for_mode_auto() -> None:
    engine = engine_of(token_budget=9)
    known = [engine.planner.curve.is_known]
    engine.calibrate()
    known.append(engine.planner.curve.is_known)
    assert known == [False, True]
    assert engine.planner.curve.seconds(8) > 0
    with pytest.raises(UsageError, match="tree_size=4 is not supported in mode 'auto': the planner chooses"):
        options_of("auto", tree_size=4)
    with pytest.raises(UsageError, match="nothing is planned for one request by itself"):
        generate(denoiser_of(1), TOKENIZER, PROMPT, options_of("auto"))
    engine.add(PROMPT, options_of("auto"))
    engine.step()
    engine.step()
    assert engine.choice is not None
    assert set(engine.choice.ways) == {0}


def test_generate_wants_the_engine_to_itself() -> None:
    engine = engine_of()
    engine.add(PROMPT, options_of("ar"))
    with pytest.raises(UsageError, match="has requests already"):
        engine.generate([(PROMPT, options_of("ar"))])


def test_generate_leaves_nothing_behind_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, whole = engine_of(num_pages=8), (PROMPT, options_of("ar"))
    (wanted,) = engine.generate([whole])
    with pytest.raises(UsageError, match="the engine has 8"):
        engine.generate([whole, (PROMPT, options_of("ar", max_tokens=500))])
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([whole, whole])
    engine.check()
    assert [answer.token_ids for answer in engine.generate([whole])] == [wanted.token_ids]


def raise_interrupt(*given: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_longer_than_the_budget_is_the_reference_loops(mode: Mode) -> None:
    prompt, options = PROMPT * 20, options_of(mode)
    (ours,) = engine_of(token_budget=8).generate([(prompt, options)])
    assert essence(ours) == essence(generate(denoiser_of(0), TOKENIZER, prompt, options))
    assert ours.num_forwards == ours.num_decode_forwards + 80 // 8
