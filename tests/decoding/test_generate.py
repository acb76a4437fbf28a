"""The loop: counts, ends, canvases, events and refusals, in every mode."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decoding.generate import PREFILL_CHUNK, generate, stream
from unmask.decoding.generation import Generation, Snapshot
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import (
    EntropyBound,
    Factor,
    Klass,
    LeftToRight,
    Margin,
    Random,
    Rule,
    Spaced,
    Threshold,
    TopK,
)
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer

MakeDenoiser = Callable[..., Denoiser]

PROMPT = [5, 9, 3, 14]
RULES = [
    Threshold(0.5),
    TopK(2),
    EntropyBound(1.0),
    Margin(2),
    Random(2),
    LeftToRight(3),
    Factor(2.0),
    Klass(0.3, 0.5, 1),
    Spaced(),
]

per_mode = pytest.mark.parametrize("mode", MODES)


def options_of(mode: Mode, **changes: object) -> Options:
    base = Options(mode, max_tokens=20, block_length=None if mode == "ar" else 4)
    return replace(base, **changes)  # type: ignore[arg-type]


@per_mode
@pytest.mark.parametrize("logit_shift", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 6, 9, 10, 11, 30])
def test_max_tokens_is_exact_and_calls_are_counted(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode, logit_shift: bool, max_tokens: int
) -> None:
    denoiser = make_denoiser(logit_shift=logit_shift, num_allowed=3)
    done = generate(denoiser, tokenizer, PROMPT, options_of(mode, max_tokens=max_tokens))
    calls = denoiser.calls  # type: ignore[attr-defined]
    assert (done.num_tokens, done.finish_reason) == (max_tokens, "length")
    assert done.num_tokens == len(done.token_ids) == len(done.decided_at)
    assert (done.num_forwards, done.num_decode_forwards) == (len(calls), len(calls) - 1)
    assert (done.mode, done.seed, done.prompt_tokens) == (mode, 0, 4)
    assert done.tokens_per_forward == (max_tokens / (len(calls) - 1) if len(calls) > 1 else None)
    assert done.decided_at[0] == 0
    assert max(done.decided_at) == done.num_decode_forwards
    assert set(done.seconds) == {"prefill", "decode"}
    assert min(done.seconds.values()) >= 0


@given(
    mode=st.sampled_from(MODES),
    logit_shift=st.booleans(),
    block_length=st.integers(1, 9),
    max_tokens=st.integers(1, 24),
    rule=st.sampled_from(RULES),
    num_steps=st.none() | st.integers(1, 5),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**64),
    length=st.integers(1, 20),
)
@settings(max_examples=60)
def test_bookkeeping(
    make_denoiser: MakeDenoiser,
    tokenizer: Tokenizer,
    mode: Mode,
    logit_shift: bool,
    block_length: int,
    max_tokens: int,
    rule: Rule,
    num_steps: int | None,
    temperature: float,
    seed: int,
    length: int,
) -> None:
    """Whatever the options, the counts fit together and what was decided stays."""
    denoiser = make_denoiser(logit_shift=logit_shift, num_allowed=4)
    options = Options(
        mode,
        max_tokens=max_tokens,
        block_length=None if mode == "ar" else block_length,
        rule=rule if mode == "diffusion" else None,
        num_steps=num_steps if mode == "diffusion" else None,
        temperature=temperature,
        seed=seed,
        stop_token_ids=(0,),
    )
    *snapshots, done = stream(denoiser, tokenizer, (PROMPT * 5)[:length], options)
    assert isinstance(done, Generation)
    assert [event.num_forwards for event in snapshots] == list(range(1, done.num_forwards + 1))
    assert done.num_forwards == len(denoiser.calls)  # type: ignore[attr-defined]
    assert done.num_tokens <= max_tokens
    assert (done.finish_reason == "stop") == (done.token_ids[-1] == 0)
    assert 0 not in done.token_ids[:-1]
    known: dict[int, int] = {}
    for event in snapshots:
        assert isinstance(event, Snapshot)
        tokens = [*event.token_ids, *event.canvas]
        assert len(event.decided_at) == len(tokens)
        if event.phase == "draft":
            continue
        for place, token in enumerate(tokens):
            assert (token is None) == (event.decided_at[place] is None)
            if token is not None:
                assert known.setdefault(place, token) == token
        assert all(tokens[place] is not None for place in known if place < len(tokens))
    assert tuple(known[place] for place in range(done.num_tokens)) == done.token_ids
    if mode == "speculative":
        assert len(done.accepted_lengths) == sum(event.phase == "verify" for event in snapshots)
        assert all(0 <= count <= block_length for count in done.accepted_lengths)
        assert all(count >= 1 for count in done.accepted_lengths) or not logit_shift
        steps = sum(event.phase == "step" for event in snapshots)
        emitted = 1 + steps + sum(count + 1 for count in done.accepted_lengths)
        assert emitted == done.num_tokens or (done.finish_reason == "stop" and emitted > done.num_tokens)
    else:
        assert done.accepted_lengths == ()
    if num_steps is not None and mode == "diffusion":
        blocks = "".join("d" if event.phase == "denoise" else " " for event in snapshots).split()
        assert max(map(len, blocks), default=0) <= num_steps


def phases(denoiser: Denoiser, tokenizer: Tokenizer, options: Options) -> list[str]:
    return [
        event.phase for event in stream(denoiser, tokenizer, PROMPT, options) if isinstance(event, Snapshot)
    ]


def test_a_threshold_above_one_commits_one_token_per_forward(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    options = options_of("diffusion", rule=Threshold(1.5), max_tokens=11)
    expected = ["prefill", *["denoise"] * 4, "commit", *["denoise"] * 4, "commit"]
    assert phases(make_denoiser(), tokenizer, options) == expected


def test_a_threshold_of_zero_commits_a_block_per_forward(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    options = options_of("diffusion", rule=Threshold(0.0), max_tokens=11)
    assert phases(make_denoiser(), tokenizer, options) == ["prefill", *["denoise", "commit"] * 2]
    done = generate(make_denoiser(), tokenizer, PROMPT, options)
    assert done.decided_at == (0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4)
    assert done.tokens_per_forward == 11 / 4


def test_the_last_block_shrinks_and_is_not_committed(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    options = options_of("diffusion", rule=LeftToRight(), max_tokens=8)
    expected = ["prefill", *["denoise"] * 4, "commit", "denoise", "denoise"]
    assert phases(make_denoiser(), tokenizer, options) == expected


def test_the_last_token_of_speculation_is_an_autoregressive_step(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    assert phases(make_denoiser(), tokenizer, options_of("speculative", max_tokens=2)) == ["prefill", "step"]
    three = phases(make_denoiser(), tokenizer, options_of("speculative", max_tokens=3))
    assert three == ["prefill", "draft", "verify"]  # with a logit shift the only draft is always accepted


def test_left_to_right_diffusion_with_one_mask_is_autoregressive(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    """With a logit shift a canvas of one mask has the AR law, and the adapter never runs."""
    ar = generate(make_denoiser(), tokenizer, PROMPT, options_of("ar"))
    blocks_of_one = generate(make_denoiser(), tokenizer, PROMPT, options_of("diffusion", block_length=1))
    assert blocks_of_one.token_ids == ar.token_ids


@per_mode
def test_long_prompts_are_prefilled_in_chunks(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode
) -> None:
    prompt = (PROMPT * 300)[: 2 * PREFILL_CHUNK + 3]
    denoiser = make_denoiser(max_positions=2048)
    done = generate(denoiser, tokenizer, prompt, options_of(mode, max_tokens=6))
    assert done.num_forwards - done.num_decode_forwards == 3
    assert done.prompt_tokens == len(prompt)
    whole = denoiser.new_cache(len(prompt))
    logits = denoiser.causal(torch.tensor(prompt), 0, whole)
    assert done.token_ids[0] == int(logits.argmax())


@per_mode
@pytest.mark.parametrize("logit_shift", [True, False])
def test_the_cache_is_the_causal_streams(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode, logit_shift: bool
) -> None:
    """Whatever canvases and rejected drafts went over it, it holds what one causal forward stores."""
    denoiser = make_denoiser(num_allowed=3, logit_shift=logit_shift)
    done = generate(denoiser, tokenizer, PROMPT, options_of(mode, max_tokens=11))
    tokens = torch.tensor([*PROMPT, *done.token_ids[:-1]])  # the last token is never run
    causal = denoiser.new_cache(len(tokens))
    denoiser.causal(tokens, 0, causal)
    used = denoiser.caches[0]  # type: ignore[attr-defined]
    for ours, wanted in ((used.keys, causal.keys), (used.values, causal.values)):
        torch.testing.assert_close(ours[:, :, :, : len(tokens)], wanted, atol=1e-5, rtol=1e-5)


@per_mode
def test_the_context_ends_the_text(make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode) -> None:
    done = generate(make_denoiser(max_positions=16), tokenizer, PROMPT, options_of(mode))
    assert (done.num_tokens, done.finish_reason) == (12, "length")


@per_mode
def test_a_stop_token_ends_the_text(make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode) -> None:
    free = generate(make_denoiser(), tokenizer, PROMPT, options_of(mode))
    for stop in set(free.token_ids):
        # Later blocks are not the same once a token ends the text, but nothing before it may change.
        done = generate(make_denoiser(), tokenizer, PROMPT, options_of(mode, stop_token_ids=(stop,)))
        count = free.token_ids.index(stop) + 1
        assert (done.token_ids, done.finish_reason) == (free.token_ids[:count], "stop")
        assert done.text == tokenizer.decode(free.token_ids[: count - 1])
        assert done.num_forwards <= free.num_forwards


@per_mode
def test_a_stop_string_ends_the_text(make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode) -> None:
    free = generate(make_denoiser(), tokenizer, PROMPT, options_of(mode))
    for begin in range(0, len(free.text) - 2, 3):
        stop = free.text[begin : begin + 2]
        if "\ufffd" in stop:
            continue
        done = generate(make_denoiser(), tokenizer, PROMPT, options_of(mode, stop=(stop,)))
        assert done.text == free.text[: free.text.index(stop)]
        assert done.finish_reason == "stop"
        assert stop in tokenizer.decode(done.token_ids)
        assert stop not in tokenizer.decode(done.token_ids[:-1])


def test_a_block_ends_early_at_a_stop_token_with_nothing_open_before_it(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    options = options_of("diffusion", block_length=8, rule=LeftToRight(), max_tokens=9)
    free = generate(make_denoiser(), tokenizer, PROMPT, options)
    stop = free.token_ids[3]
    count = free.token_ids.index(stop) + 1
    done = generate(make_denoiser(), tokenizer, PROMPT, replace(options, stop_token_ids=(stop,)))
    assert done.num_tokens == count
    assert done.num_decode_forwards == count - 1


@per_mode
def test_noise_is_the_seeds(make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode) -> None:
    warm = options_of(mode, temperature=4.0, seed=7)
    texts = [generate(make_denoiser(), tokenizer, PROMPT, warm).text for _ in range(2)]
    assert texts[0] == texts[1]
    others = {
        generate(make_denoiser(), tokenizer, PROMPT, replace(warm, seed=seed)).text for seed in range(5)
    }
    assert len(others) == 5


@per_mode
def test_the_first_token_is_the_same_in_every_mode(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode
) -> None:
    for seed in range(5):
        ar = generate(
            make_denoiser(), tokenizer, PROMPT, options_of("ar", temperature=1.0, seed=seed, max_tokens=1)
        )
        done = generate(make_denoiser(), tokenizer, PROMPT, options_of(mode, temperature=1.0, seed=seed))
        assert done.token_ids[0] == ar.token_ids[0]


@per_mode
def test_time_spent_by_the_caller_is_not_counted(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("unmask.decoding.generate.time.perf_counter", lambda: now[0])
    for event in stream(make_denoiser(), tokenizer, PROMPT, options_of(mode)):
        now[0] += 1.0
        if isinstance(event, Generation):
            assert event.seconds == {"prefill": 0.0, "decode": 0.0}


def refused(
    denoiser: Denoiser, tokenizer: Tokenizer, prompt: list[int], options: Options, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        stream(denoiser, tokenizer, prompt, options)
    assert denoiser.calls == []  # type: ignore[attr-defined]


def test_refused_before_the_first_forward(make_denoiser: MakeDenoiser, tokenizer: Tokenizer) -> None:
    denoiser = make_denoiser(max_positions=16)
    refused(denoiser, tokenizer, [], Options(), "the prompt has no tokens")
    refused(denoiser, tokenizer, [3] * 16, Options(), "the prompt has 16 tokens, the model's context only 16")
    refused(denoiser, tokenizer, [3, 32], Options(), "prompt token 32 is outside the vocabulary of 32")
    refused(
        denoiser,
        tokenizer,
        [3],
        Options(stop_token_ids=(99,)),
        "stop_token_ids: 99 is outside the vocabulary",
    )
    plain = make_denoiser(has_adapter=False)
    assert generate(plain, tokenizer, PROMPT, Options(max_tokens=3)).num_tokens == 3
    for mode in ("diffusion", "speculative"):
        refused(
            make_denoiser(has_adapter=False),
            tokenizer,
            [3],
            Options(mode),
            f"mode '{mode}': this model has no mask",
        )
