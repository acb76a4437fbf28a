"""A model as tasks see it: likelihoods equal those of one plain forward each, and text is what decoding writes."""

import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_models import CONFIG, byte_tokenizer, logits_of, tiny_checkpoint

from unmask.config import AdapterConfig
from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES, Rule, View, leading
from unmask.decoding.sampler import Sampler
from unmask.decoding.samplers import Ancestral
from unmask.errors import UsageError
from unmask.evaluation.autoregressive import Autoregressive
from unmask.evaluation.canvas_likelihood import Bound, Duel
from unmask.evaluation.continuations import Continuation
from unmask.evaluation.model_scorer import LIKELIHOODS, ModelScorer
from unmask.evaluation.scoring import Gap, GenerationRequest, LikelihoodRequest
from unmask.model.adapter import Adapter

AR = Options(mode="ar")
TOKENIZER = byte_tokenizer()
WINDOW = CONFIG.max_positions


@pytest.fixture(scope="module")
def plain() -> LanguageModel:
    """A random model without a canvas, of a window of 64 tokens; a token per byte."""
    return LanguageModel(tiny_checkpoint())


@pytest.fixture(scope="module")
def converted(tiny_model: Path) -> LanguageModel:
    """A random model with an adapter and canvases of 4."""
    return load(str(tiny_model))


def one_forward(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Score a continuation in a forward of its own."""
    tokens = torch.tensor([*context, *continuation])
    logits = logits_of(model.denoiser.transformer, tokens[:-1])[len(context) - 1 :]
    nats = logits.double().log_softmax(-1).gather(1, tokens[len(context) :, None]).sum()
    return float(nats), bool((logits.argmax(-1) == tokens[len(context) :]).all())


REQUESTS = [
    LikelihoodRequest(context, continuation)
    for context, continuation in [
        *product(
            ["Question: what?\nAnswer:", "Question: who?\nAnswer:"], [" yes", " no", " yes it is", " y"]
        ),
        ("a sentence that the cat", " finished."),
        ("a sentence that the dog", " finished."),
        ("b", "c"),
        ("", "a beginning"),
        ("b", "c"),
    ]
]


def test_likelihoods_are_those_of_one_forward_each(plain: LanguageModel) -> None:
    answers = ModelScorer(plain, AR).loglikelihood(REQUESTS)
    for request, answer in zip(REQUESTS, answers, strict=True):
        context = TOKENIZER.encode(request.context) or [TOKENIZER.bos_id or 0]
        nats, is_greedy = one_forward(plain, context, TOKENIZER.encode(request.continuation))
        assert answer.nats == pytest.approx(nats, abs=1e-4)
        assert (answer.is_greedy, answer.num_tokens) == (is_greedy, len(request.continuation))
        assert answer.num_dropped == 0


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(plain: LanguageModel) -> None:
    scorer = ModelScorer(plain, AR)
    together = scorer.loglikelihood(REQUESTS)
    alone = [scorer.loglikelihood([request])[0] for request in REQUESTS]
    backwards = scorer.loglikelihood(REQUESTS[::-1])[::-1]
    for answers in zip(together, alone, backwards, strict=True):
        assert [answer.nats for answer in answers] == [pytest.approx(answers[0].nats, abs=1e-4)] * 3


def test_the_greedy_continuation_is_told(plain: LanguageModel) -> None:
    likelihood = Autoregressive().prepare(plain, AR)
    tokens = [1, 2, 3]
    for _ in range(4):
        tokens.append(int(logits_of(plain.denoiser.transformer, torch.tensor(tokens))[-1].argmax()))
    other = [*tokens[:-1], tokens[-1] - 1]
    answers = likelihood([Continuation(tuple(each), 4) for each in (tokens, other)])
    assert [answer.is_greedy for answer in answers] == [True, False]


def test_space_before_the_join_belongs_to_the_continuation(plain: LanguageModel) -> None:
    scorer = ModelScorer(plain, AR)
    apart, together = scorer.loglikelihood([LikelihoodRequest("a b ", "c"), LikelihoodRequest("a b", " c")])
    assert apart.nats == pytest.approx(together.nats, abs=1e-5)
    assert apart.num_tokens == together.num_tokens == 2


def test_a_long_context_is_cut_at_its_beginning_and_says_so(plain: LanguageModel) -> None:
    long = "x" * 50 + "y" * 40
    (answer,) = ModelScorer(plain, AR).loglikelihood([LikelihoodRequest(long, " end")])
    kept = TOKENIZER.encode(long + " end")[-WINDOW - 1 :]
    assert answer.nats == pytest.approx(one_forward(plain, kept[:-4], kept[-4:])[0], abs=1e-4)
    assert answer.num_dropped == 94 - (WINDOW + 1)


def test_what_cannot_be_scored_is_refused(plain: LanguageModel) -> None:
    scorer = ModelScorer(plain, AR)
    with pytest.raises(UsageError, match="65 tokens, the model's window 64"):
        scorer.loglikelihood([LikelihoodRequest("a", "x" * 65)])
    with pytest.raises(UsageError, match="adds no token"):
        scorer.loglikelihood([LikelihoodRequest("a", "")])


def test_whole_texts_are_scored_window_by_window(plain: LanguageModel) -> None:
    text = "".join(chr(97 + number % 26) for number in range(150))
    short, long, empty = ModelScorer(plain, AR).loglikelihood_rolling([text[:20], text, ""])
    tokens = [TOKENIZER.bos_id or 0, *TOKENIZER.encode(text)]
    assert short.nats == pytest.approx(one_forward(plain, tokens[:1], tokens[1:21])[0], abs=1e-4)
    # 64 tokens after the beginning, 64 after the 64 before, the last 22 after 64 that end before the last.
    parts = (tokens[:1], tokens[1:65]), (tokens[64:65], tokens[65:129]), (tokens[86:129], tokens[129:])
    assert long.nats == pytest.approx(sum(one_forward(plain, *part)[0] for part in parts), abs=1e-3)
    assert (short.num_tokens, long.num_tokens) == (20, 150)
    assert (empty.nats, empty.num_tokens) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [AR, Options(mode="speculative"), Options(mode="diffusion", rule=RULES.parse("top-k:2"), num_steps=3)],
    ids=lambda options: options.mode,
)
def test_text_is_what_the_model_writes(options: Options, converted: LanguageModel) -> None:
    request = GenerationRequest("Say something: ", ("e", "<|end|>"), 24)
    (answer,) = ModelScorer(converted, options).generate_until([request])
    rule = None if options.rule is None else options.rule
    truth = converted.generate(
        request.context,
        mode=options.mode,
        rule=rule,
        num_steps=options.num_steps,
        max_tokens=24,
        stop="e",
        raw=True,
    )
    assert answer.text == truth.text
    assert answer.num_tokens == truth.num_tokens
    assert (answer.num_forwards, answer.num_decode_forwards) == (
        truth.num_forwards,
        truth.num_decode_forwards,
    )


def test_a_stop_that_is_a_special_token_stands_for_its_id(converted: LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"'<\|end\|>' is a special token"):
        converted.generate("Say: ", stop="<|end|>", raw=True)
    for until in (("<|end|>",), ("<|end|>", "<|start|>", "\n")):
        (answer,) = ModelScorer(converted, AR).generate_until([GenerationRequest("Say: ", until, 4)])
        assert answer.num_tokens <= 4


def test_a_long_prompt_leaves_room_for_the_answer(plain: LanguageModel) -> None:
    scorer = ModelScorer(plain, Options(stop_token_ids=()))
    (answer,) = scorer.generate_until([GenerationRequest("x" * 60, (), 10)])
    assert (answer.num_tokens, answer.num_dropped) == (10, 60 - (WINDOW - 10))
    with pytest.raises(UsageError, match=r"an answer may have 64 tokens.*window holds 64"):
        scorer.generate_until([GenerationRequest("x", (), 64)])


def test_sampling_draws_anew_for_every_context_and_the_same_every_time(converted: LanguageModel) -> None:
    options = Options(temperature=1.0, stop_token_ids=())
    requests = [GenerationRequest(context, (), 12) for context in ("one", "two", "one")]
    first, other, again = ModelScorer(converted, options).generate_until(requests)
    assert first == again
    assert first.text != other.text
    assert ModelScorer(converted, replace(options, seed=1)).generate_until(requests[:1])[0] != first


GAP = GenerationRequest("def f(x):\n", ("\n",), 16, Gap("\n    return y\n", "    y = x"))


def test_a_gap_is_filled_with_a_view_of_both_sides(converted: LanguageModel) -> None:
    scorer = ModelScorer(converted, Options(mode="diffusion", rule=RULES.parse("top-k:1")))
    (answer,) = scorer.generate_until([GAP])
    assert answer.num_tokens == answer.num_decode_forwards == 9
    assert "\n" not in answer.text
    other = replace(GAP, gap=Gap("\n    print(x)\n", "    y = x"))
    assert scorer.generate_until([other])[0].text != answer.text


def test_without_a_canvas_a_gap_is_written_from_the_left(converted: LanguageModel) -> None:
    (answer,) = ModelScorer(converted, AR).generate_until([GAP])
    assert answer == ModelScorer(converted, AR).generate_until([replace(GAP, gap=None)])[0]


@pytest.mark.parametrize("kind", [Bound(2), Duel()])
def test_diffusion_likelihoods_fit_the_canvas(kind: Bound | Duel, converted: LanguageModel) -> None:
    scorer = ModelScorer(converted, Options(mode="diffusion"), kind)
    requests = [LikelihoodRequest("Is it? ", " yes it is"), LikelihoodRequest("Is it?", " no")]
    answers = scorer.loglikelihood(requests)
    assert answers[::-1] == scorer.loglikelihood(requests[::-1])
    assert all(answer.is_greedy is None and answer.nats < 0 for answer in answers)


def test_blocks_of_one_token_are_the_autoregressive_likelihood(converted: LanguageModel) -> None:
    exact = ModelScorer(converted, AR).loglikelihood(REQUESTS[:4])
    for kind in (Bound(2), Duel()):
        options = Options(mode="diffusion", block_length=1)
        for one, other in zip(
            ModelScorer(converted, options, kind).loglikelihood(REQUESTS[:4]), exact, strict=True
        ):
            assert one.nats == pytest.approx(other.nats, abs=1e-3)


def tiny(attention: Literal["causal", "full"]) -> LanguageModel:
    """Return a model of six tokens and a mask, of which everything can be written out."""
    config = replace(CONFIG, vocab_size=7)
    checkpoint = tiny_checkpoint(config)
    card = replace(
        checkpoint.card,
        mask_token_id=6,
        block_length=2,
        attention=attention,
        predicts_next=attention == "causal",
        logit_shift=attention == "causal",
        stop_token_ids=(),
    )
    adapter = None
    if attention == "causal":
        adapter = Adapter(config, AdapterConfig(rank=2)).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return LanguageModel(replace(checkpoint, card=card, adapter=adapter))


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("rule", ["left-to-right:2", "left-to-right:1"])
def test_exact_likelihoods_sum_to_one(rule: str, attention: Literal["causal", "full"]) -> None:
    options = Options(mode="diffusion", rule=RULES.parse(rule), block_length=2)
    likelihood = Duel().prepare(tiny(attention), options)
    every = [Continuation((1, 2, *rest), 2) for rest in product(range(6), repeat=2)]
    assert sum(math.exp(answer.nats) for answer in likelihood(every)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_the_bound_lies_below_what_it_bounds(attention: Literal["causal", "full"]) -> None:
    # The bound is the mean of the exact log-likelihoods over all orders, one token at a time: here there are two.
    model, each = tiny(attention), Continuation((1, 2, 3, 0), 2)
    options = Options(mode="diffusion", block_length=2)
    orders = [
        Duel().prepare(model, replace(options, rule=rule))([each])[0].nats
        for rule in (RULES.parse("left-to-right:1"), _RightToLeft())
    ]
    (answer,) = Bound(2000).prepare(model, options)([each])
    assert answer.nats == pytest.approx(sum(orders) / 2, abs=0.1)


@dataclass(frozen=True)
class _RightToLeft(Rule):
    """Commits the last open position."""

    def select(self, view: View) -> torch.Tensor:
        return leading(self.priority(view), view.open, torch.ones(len(view.open), dtype=torch.int64))

    def priority(self, view: View) -> torch.Tensor:
        return view.positions.double()


@pytest.mark.parametrize("sampler", [None, Ancestral()])
def test_a_full_attention_model_fills_a_gap_too(sampler: Sampler | None) -> None:
    model = tiny("full")
    options = Options(mode="diffusion", sampler=sampler, max_tokens=3, suffix_ids=(4, 5))
    filling = generate(model.denoiser, model.tokenizer, [1, 2, 3], options)
    assert len(filling.token_ids) == 3
    assert 1 <= filling.num_forwards <= 3
    assert max(filling.token_ids) < 6


def test_likelihoods_by_name(plain: LanguageModel) -> None:
    assert LIKELIHOODS.parse("bound:8") == Bound(8)
    assert LIKELIHOODS.parse("ar") == Autoregressive()
    with pytest.raises(UsageError, match="num_samples=1 must be at least 2"):
        LIKELIHOODS.parse("bound:1")
    with pytest.raises(UsageError, match="did you mean 'duel'"):
        LIKELIHOODS.parse("duell")
    for name in ("bound", "duel"):
        with pytest.raises(UsageError, match=f"likelihood '{name}': this model has no mask token"):
            ModelScorer(plain, AR, LIKELIHOODS.parse(name))
    blind = replace(plain.checkpoint, card=replace(plain.checkpoint.card, predicts_next=False))
    with pytest.raises(UsageError, match="'ar': this model was not trained to predict next tokens"):
        ModelScorer(LanguageModel(blind), AR)
