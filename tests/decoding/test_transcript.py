"""Where a text ends: stop tokens, stop strings, bytes of unfinished characters."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.options import Options
from unmask.decoding.transcript import TextStream, Transcript
from unmask.errors import UsageError
from unmask.tokenizer import Tokenizer

E_ACUTE = (29, 30)


def written(tokenizer: Tokenizer, tokens: list[int], options: Options, room: int = 1000) -> Transcript:
    transcript = Transcript(tokenizer, options, room=room)
    for step, token in enumerate(tokens):
        transcript.append(token, step)
    return transcript


def ids(text: str) -> list[int]:
    return [ord(letter) - ord("a") + 2 for letter in text]


@given(st.lists(st.integers(0, 31), max_size=30))
def test_the_stream_adds_up_to_the_text(tokenizer: Tokenizer, tokens: list[int]) -> None:
    stream = TextStream(tokenizer)
    pieces = "".join(stream.push(token) for token in tokens)
    text = tokenizer.decode(tokens)
    assert text.startswith(pieces)
    assert set(text[len(pieces) :]) <= {"\ufffd"}


def test_a_character_appears_when_it_is_whole(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (2, *E_ACUTE, 3)] == ["a", "", "é", "b"]


def test_length(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, ids("abcdef"), Options(), room=3)
    assert (done.token_ids, done.text, done.finish_reason) == (ids("abc"), "abc", "length")
    assert done.decided_at == [0, 1, 2]


def test_stop_token_is_kept_in_the_tokens_and_not_in_the_text(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, [*ids("ab"), 5, 6], Options(stop_token_ids=(5,)))
    assert (done.token_ids, done.text, done.finish_reason) == ([*ids("ab"), 5], "ab", "stop")


def test_a_stop_token_on_the_last_place_is_a_stop(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, [2, 0], Options(stop_token_ids=(0,)), room=2).finish_reason == "stop"


def test_stop_string_cuts_text_before_and_tokens_after(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, ids("hellothere"), Options(stop=("lot",)))
    assert (done.token_ids, done.text, done.finish_reason) == (ids("hellot"), "hel", "stop")


def test_the_first_of_several_stop_strings_counts(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, ids("abcdef"), Options(stop=("de", "bcd")))
    assert (done.token_ids, done.text) == (ids("abcd"), "a")


def test_stop_string_of_many_bytes(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, [2, *E_ACUTE, 3, 4], Options(stop=("éb",)))
    assert (done.token_ids, done.text) == ([2, *E_ACUTE, 3], "a")


def test_stop_string_is_found_beside_unfinished_bytes(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, [29, *ids("ab"), 29], Options(stop=("b",)))
    assert done.token_ids == [29, *ids("ab")]


def test_special_tokens_do_not_break_a_stop_string(tokenizer: Tokenizer) -> None:
    done = written(tokenizer, [2, 1, 3, 4], Options(stop=("ab",)))
    assert (done.token_ids, done.text) == ([2, 1, 3], "")


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stop_strings_by_definition(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    done = written(tokenizer, ids(text), Options(stop=tuple(stop)))
    ends = [end for end in range(len(text) + 1) if any(s in text[:end] for s in stop)]
    end = ends[0] if ends else len(text)
    assert done.token_ids == ids(text[:end])
    assert done.text == text[:end][: min((p for s in stop if (p := text[:end].find(s)) >= 0), default=end)]
    assert (done.finish_reason == "stop") == bool(ends)


def test_a_special_token_is_refused_as_stop_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=re.escape("stop='<eos>' is a special token")):
        Transcript(tokenizer, Options(stop=("<eos>",)), room=1)
