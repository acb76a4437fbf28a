"""Constrained texts: always valid, in every mode, and in law the constrained autoregressive ones."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_denoisers import byte_tokenizer, letter_tokenizer, random_denoiser
from unmask.decoding.constraint import Constraint
from unmask.decoding.generate import generate, stream
from unmask.decoding.generation import Generation
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import LeftToRight, Threshold, TopK
from unmask.decoding.samplers import Ancestral
from unmask.decoding.text_law import TextLaw
from unmask.engine.engine import Engine, Failed, Finished
from unmask.errors import FailureError, UsageError
from unmask.model.denoiser import Denoiser

LETTERS, BYTES = letter_tokenizer(), byte_tokenizer()
PROMPT = [5, 9, 3, 14]


@cache
def model(seed: int) -> Denoiser:
    return random_denoiser(seed=seed, vocab_size=270, max_positions=512)


def constrained(mode: Mode, constraint: Constraint, **changes: Any) -> Options:
    options = Options(
        mode,
        max_tokens=200,
        block_length=None if mode == "ar" else 5,
        rule=Threshold(0.3) if mode == "diffusion" else None,
        constraint=constraint,
        stop_token_ids=(0,),
    )
    return replace(options, **changes)


def write(options: Options, seed: int = 0) -> Generation:
    return generate(model(seed), BYTES, PROMPT, options)


def schema_of(schema: Mapping[str, object] | bool) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


names = st.text('abé"\\ \n', min_size=1, max_size=3)
integers = st.builds(
    lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
    st.integers(-20, 99),
    st.integers(0, 40),
)
choices = st.lists(names | st.integers(-9, 9) | st.none(), min_size=1, max_size=3, unique_by=repr)
others = [
    {"type": "boolean"},
    {"type": "null"},
    {"const": "ü\t\U0001f600"},
    {"type": "string", "pattern": "^[a-c]{2}$"},
    {"type": "string", "maxLength": 4},
]
scalars = integers | choices.map(lambda values: {"enum": values}) | st.sampled_from(others)


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 1),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda properties, optional: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[optional:],
            "additionalProperties": False,
        },
        st.dictionaries(names, inner, max_size=3),
        st.integers(0, 1),
    )
    return arrays | objects | st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)


schemas = st.recursive(scalars, containers, max_leaves=4)


@given(schema=schemas, seed=st.integers(0, 3), temperature=st.sampled_from([0.0, 1.0]))
@settings(max_examples=20)
def test_every_text_is_an_instance_of_its_schema(
    schema: dict[str, Any], seed: int, temperature: float
) -> None:
    """Of a random model, which would write anything; and greedy speculation writes the autoregressive text."""
    texts = {}
    for mode in MODES:
        done = write(constrained(mode, schema_of(schema), temperature=temperature), seed)
        assert done.finish_reason == "stop"
        assert done.token_ids[-1] == 0
        jsonschema.validate(json.loads(done.text), schema)
        texts[mode] = done.token_ids
    if temperature == 0:
        assert texts["speculative"] == texts["ar"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_regex_and_grammar(mode: Mode, temperature: float) -> None:
    regex = Constraint("regex", r"[0-9]{3}-(é|\n|x+){2,4}")
    grammar = Constraint("grammar", 'start: item ("," item)*\nitem: "(" start ")" | /[a-c]{1,2}/')
    bias = tuple((token, 4.0) for token in BYTES.encode_prompt(")"))
    for seed in range(2):
        done = write(constrained(mode, regex, temperature=temperature, max_tokens=40), seed)
        assert re.fullmatch(regex.text, done.text) or done.finish_reason == "length"
        done = write(
            constrained(mode, grammar, temperature=temperature, logit_bias=bias, max_tokens=60), seed
        )
        skeleton = re.sub("[a-c]{1,2}", "x", done.text)
        while "(" in skeleton and done.finish_reason == "stop":
            shorter = re.sub(r"\(x(,x)*\)", "x", skeleton)
            assert shorter != skeleton
            skeleton = shorter
        assert re.fullmatch("x(,x)*", skeleton) or done.finish_reason == "length"


@pytest.mark.parametrize("mode", MODES)
def test_too_few_tokens_cut_the_text(mode: Mode) -> None:
    done = write(constrained(mode, Constraint("regex", "a{30}"), max_tokens=7))
    assert (done.text, done.finish_reason) == ("aaaaaaa", "length")


@pytest.mark.parametrize("mode", MODES)
def test_any_object(mode: Mode) -> None:
    bias = tuple((token, 9.0) for token in BYTES.encode_prompt('"') + BYTES.encode_prompt("}"))
    done = write(constrained(mode, Constraint("json_object"), logit_bias=bias))
    assert done.finish_reason == "stop"
    assert isinstance(json.loads(done.text), dict)


def test_what_is_certain_is_decided_together() -> None:
    """A place where one token is admitted has all the confidence there is, so a diffusion forward takes many."""
    options = constrained("diffusion", Constraint("regex", "abcdefgh"), rule=Threshold(0.99), block_length=8)
    done = write(options)
    assert done.text == "abcdefgh"
    assert done.num_decode_forwards == 1  # after the prefill's token: seven letters and the end


def test_a_step_budget_holds_under_a_constraint() -> None:
    for rule in (TopK(1), LeftToRight(1)):
        options = constrained(
            "diffusion", Constraint("regex", "[A-Z]{30}"), rule=rule, num_steps=2, block_length=5
        )
        done = write(options)
        assert re.fullmatch("[A-Z]{30}", done.text)
        assert done.num_decode_forwards == 5 * (
            2 + 1
        )  # blocks of 5 and their commits, the last of which ends it


def test_diffusion_decides_nothing_behind_an_open_place() -> None:
    options = constrained(
        "diffusion", Constraint("regex", "[a-z ]{40}"), rule=Threshold(0.2), temperature=1.0
    )
    for event in stream(model(1), BYTES, PROMPT, options):
        if not isinstance(event, Generation):
            is_open = [token is None for token in event.canvas]
            assert is_open == sorted(is_open)


def test_the_matcher_stands_where_it_stood() -> None:
    options = Options(constraint=Constraint("regex", "ab*c"), stop_token_ids=(0,), temperature=1.0)
    text_law = TextLaw.of(options, written := [2], LETTERS)
    logits = torch.zeros(3, 32)
    for _ in range(2):
        laws = text_law.laws(logits, [3, 4])  # after a; ab; abc
        assert [law.nonzero()[:, 0].tolist() for law in laws] == [[3, 4], [3, 4], [0]]
        assert text_law.draw(logits, torch.zeros(3))[0].tolist() == [3, 3, 3]
    written += [3, 4]
    assert text_law.laws(logits[:1])[0].nonzero().tolist() == [[0]]


def test_a_stop_token_ends_where_the_constraint_accepts_and_only_there() -> None:
    """Token 2 is the letter a, and a stop token beside token 1; the tokenizer's own end is token 0."""
    options = Options(constraint=Constraint("regex", "b|bbb|ba"), stop_token_ids=(1, 2), temperature=1.0)
    text_law = TextLaw.of(options, written := [], LETTERS)
    for possible in ([3], [1, 2, 3], [3], [1, 2]):
        assert text_law.laws(torch.zeros(1, 32))[0].nonzero()[:, 0].tolist() == possible
        written.append(3)


REFUSED: list[tuple[Constraint, str]] = [
    (Constraint("json_schema", "{"), "is not JSON"),
    (Constraint("json_schema", "[1]"), "must be a JSON object"),
    (schema_of({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
    (schema_of({"type": "objekt"}), "Invalid type: objekt"),
    (Constraint("regex", "a(b"), "unclosed group"),
    (Constraint("grammar", 'start: "a" foo'), 'unknown name: "foo"'),
]


@pytest.mark.parametrize(("constraint", "message"), REFUSED)
def test_refused_before_the_first_forward(constraint: Constraint, message: str) -> None:
    denoiser = random_denoiser()
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(denoiser, LETTERS, PROMPT, Options(constraint=constraint, stop_token_ids=(0,)))
    assert not denoiser.calls


def test_refused_by_the_options() -> None:
    regex = Constraint("regex", "a")
    for options, message in (
        ({"stop": ("x",)}, "a stop string would cut it"),
        ({"stop_token_ids": ()}, "its end is a stop token, and there is none"),
        ({"mode": "diffusion", "sampler": Ancestral()}, "a sampler cannot keep to it"),
    ):
        with pytest.raises(UsageError, match=message):
            Options(constraint=regex, **options)  # type: ignore[arg-type]
    for kind, text in (("regex", ""), ("json_object", "{}"), ("xml", "a")):
        with pytest.raises(UsageError, match="constraint"):
            Constraint(kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_a_text_that_cannot_go_on_is_a_failure(mode: Mode) -> None:
    options = constrained(mode, Constraint("regex", "a4"), max_tokens=9)
    with pytest.raises(FailureError, match=r"constraint (cannot go on|admits no token)"):
        generate(random_denoiser(), LETTERS, PROMPT, options)


@pytest.mark.parametrize("mode", MODES)
def test_a_draft_that_runs_into_a_dead_end_fails_nobody(mode: Mode) -> None:
    """After ab the constraint wants a character that no token spells; a bias keeps the text from going there."""
    options = constrained(mode, Constraint("regex", "(a(b4|c))*"), max_tokens=12, temperature=1.0)
    for seed in range(4):
        free = replace(options, seed=seed, logit_bias=((3, -9.0),))
        done = generate(random_denoiser(sharpness=1.0), LETTERS, PROMPT, free)
        assert re.fullmatch("(ac)*a?", done.text)
    logits = torch.zeros(3, 32)
    text_law = TextLaw.of(options, [2], LETTERS)
    laws = text_law.laws(logits, [3, 0])
    assert [int(law.count_nonzero()) for law in laws] == [2, 0, 0]
    assert text_law.laws(logits, [4, 2])[2].count_nonzero() == 2


def test_a_failure_leaves_the_other_requests_alone() -> None:
    engine = Engine(random_denoiser(), LETTERS, num_pages=40)
    good = [engine.add(PROMPT, Options(mode, max_tokens=9)) for mode in MODES]
    bad = [engine.add(PROMPT, constrained(mode, Constraint("regex", "aa4"), max_tokens=9)) for mode in MODES]
    events = []
    while engine.has_work:
        events += engine.step()
        engine.check()
    assert sorted(event.request_id for event in events if isinstance(event, Failed)) == bad
    assert sorted(event.request_id for event in events if isinstance(event, Finished)) == good
    assert engine.scheduler.pool.num_available == 40
