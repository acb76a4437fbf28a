"""The facade: prompts, defaults from the card, and options by name."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from unmask.decoding import language_model
from unmask.decoding.generation import Generation, Snapshot
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import TopK
from unmask.errors import UsageError
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import Checkpoint
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer

TEMPLATE = "{% for message in messages %}<bos>{{ message.content }}<eos>{% endfor %}<bos>"


@pytest.fixture
def checkpoint(make_denoiser: Callable[..., Denoiser], tokenizer: Tokenizer) -> Checkpoint:
    denoiser = make_denoiser(vocab_size=40)
    card = ModelCard(
        name="tiny",
        family="llama",
        licence="Apache-2.0",
        description="random",
        context_length=128,
        mask_token_id=35,
        block_length=3,
        logit_shift=False,
        stop_token_ids=(7,),
    )
    return Checkpoint(denoiser.transformer, tokenizer, card, denoiser.adapter)


@pytest.fixture
def model(checkpoint: Checkpoint) -> LanguageModel:
    return LanguageModel(checkpoint)


def test_the_denoiser_follows_the_card(checkpoint: Checkpoint) -> None:
    denoiser = LanguageModel(checkpoint).denoiser
    assert (denoiser.mask_token_id, denoiser.logit_shift, denoiser.banned) == (35, False, (35,))
    assert denoiser.adapter is checkpoint.adapter
    beyond = replace(checkpoint, card=replace(checkpoint.card, mask_token_id=40, logit_shift=True))
    denoiser = LanguageModel(beyond).denoiser
    assert (denoiser.mask_token_id, denoiser.logit_shift, denoiser.banned) == (40, True, ())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_by_name(model: LanguageModel, mode: Mode) -> None:
    done = model.generate("hello", mode=mode, max_tokens=9, stop_token_ids=())
    assert (done.mode, done.num_tokens) == (mode, 9)
    assert 35 not in done.token_ids


def test_options_reach_the_loop(model: LanguageModel) -> None:
    done = model.generate(
        "hello",
        mode="diffusion",
        rule="left-to-right:2",
        block_length=4,
        num_steps=3,
        max_tokens=5,
        temperature=2.0,
        top_p=0.9,
        top_k=20,
        seed=5,
        stop="qqqq",
        stop_token_ids=[],
    )
    assert (done.seed, done.decided_at) == (5, (0, 1, 1, 2, 2))
    again = model.generate(
        "hello", mode="diffusion", rule=TopK(4), block_length=4, max_tokens=5, stop_token_ids=[]
    )
    assert again.decided_at == (0, 1, 1, 1, 1)


def test_block_length_and_stop_tokens_come_from_the_card(model: LanguageModel) -> None:
    free = model.generate("hello", max_tokens=40, temperature=3.0, stop_token_ids=())
    assert 7 in free.token_ids[:-1]
    assert model.generate("hello", max_tokens=40, temperature=3.0).token_ids[-1] == 7
    *snapshots, _ = model.stream("hello", Options("diffusion", max_tokens=9, stop_token_ids=()))
    canvases = [
        len(event.canvas) for event in snapshots if isinstance(event, Snapshot) and event.phase == "denoise"
    ]
    assert max(canvases) == 3


def test_stream_ends_with_the_generation(model: LanguageModel) -> None:
    *snapshots, done = model.stream("hello", Options(max_tokens=4, stop_token_ids=()))
    assert isinstance(done, Generation)
    assert len(snapshots) == done.num_forwards


def test_prompts(model: LanguageModel, tokenizer: Tokenizer) -> None:
    assert model.encode("hi") == tokenizer.encode("hi")  # there is no chat template
    model.tokenizer = replace(tokenizer, chat_template=TEMPLATE)
    assert model.encode("hi") == [1, *tokenizer.encode("hi"), 0, 1]
    assert model.encode("hi", raw=True) == tokenizer.encode("hi")
    assert model.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == [
        1,
        2,
        0,
        1,
        3,
        0,
        1,
    ]
    assert model.encode("") == [1, 0, 1]
    assert model.encode("", raw=True) == [1]
    assert model.encode("é", raw=True) == [29, 30]


def test_prompts_that_mean_nothing(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="a raw prompt is a text, but messages were given"):
        model.encode([{"role": "user", "content": "hi"}], raw=True)
    with pytest.raises(UsageError, match="no chat template"):
        model.encode([{"role": "user", "content": "hi"}])
    model.tokenizer = replace(tokenizer, names={})
    with pytest.raises(UsageError, match="the prompt is empty"):
        model.generate("", raw=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "difusion"}, "did you mean 'diffusion'?"),
        ({"mode": "diffusion", "rule": "treshold"}, "did you mean 'threshold'?"),
        ({"rule": "threshold"}, "is not supported in mode 'ar'"),
        ({"mode": "speculative", "num_steps": 3}, "num_steps=3 is not supported in mode 'speculative'"),
        ({"stop": ""}, "stop=('',) in mode 'ar'"),
    ],
)
def test_refusals_reach_the_caller(model: LanguageModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        model.generate("hello", **options)  # type: ignore[arg-type]


def test_load_passes_its_arguments_on(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def fake(source: str, **options: object) -> Checkpoint:
        seen.update(options, source=source)
        return checkpoint

    monkeypatch.setattr(language_model, "load_checkpoint", fake)
    assert load("tiny", adapter="none", dtype="bfloat16", offline=True).checkpoint is checkpoint
    assert seen == {
        "source": "tiny",
        "adapter": "none",
        "dtype": "bfloat16",
        "device": "cpu",
        "cache_dir": None,
        "offline": True,
        "progress": None,
    }
