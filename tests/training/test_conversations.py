"""Of a conversation the answers are learnt, with the token that ends each, and nothing else."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.chat_template import Message
from unmask.errors import UsageError
from unmask.training.batches import Packs
from unmask.training.documents import Document, draw_windows, sample_windows
from unmask.training.preparation import PreparationConfig, prepare
from unmask.training.shards import SHARD_TOKENS, Shards
from unmask.training.tokenizer_training import END, byte_tokenizer

LINES = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template that puts a line feed behind the token that ends a turn."""

FORGETFUL = (
    "{% for message in messages %}{{ message['content'] if loop.last else '...' }}{{ eos_token }}{% endfor %}"
)
"""A template that shortens earlier turns."""


def turns(*contents: str) -> list[Message]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)
    ]


CHAT = turns("hi there", "hello", f"what is {END}?", f"a {END} of two, 3 bytes: €", "bye", "so long")
ANSWERS = f"hello{END}a {END} of two, 3 bytes: €{END}so long{END}"


def conversations(path: Path, count: int) -> Path:
    rows = [
        turns("q" * (number % 7 + 1), f"answer {number}", "more", "m" * number) for number in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def make(
    folder: Path, *sources: Path, weights: tuple[float, ...] | None = None, shard_tokens: int = SHARD_TOKENS
) -> Shards:
    config = PreparationConfig(
        tuple(map(str, sources)), "bytes", held_out_share=0, weights=weights, shard_tokens=shard_tokens
    )
    return prepare(config, folder, lambda event: None, offline=True, say=lambda message: None)


@pytest.mark.parametrize("template", [None, LINES])
def test_answers_and_what_ends_them_are_flagged(template: str | None) -> None:
    plain = byte_tokenizer()
    tokenizer = plain if template is None else replace(plain, chat_template=template)
    ids, answered = tokenizer.render_answers(CHAT)
    assert ids == tokenizer.render_chat(CHAT, add_generation_prompt=False)
    flagged = [token for token, flag in zip(ids, answered, strict=True) if flag]
    assert tokenizer.decode(flagged, skip_special=False) == ANSWERS
    # Real end tokens, and not the text of one.
    assert flagged.count(tokenizer.eos_id or -1) == 3
    begin = answered.index(True)
    assert ids[:begin] == tokenizer.render_chat(CHAT[:1])


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(UsageError, match="in another way once other turns follow"):
        replace(byte_tokenizer(), chat_template=FORGETFUL).render_answers(CHAT)


def test_spans_are_runs_of_flags() -> None:
    flags = [True, True, False, False, True, False, True]
    document = Document.of_conversation([5] * 7, flags)
    assert document.learnt == ((1, 2), (4, 5), (6, 7))
    assert document.prompt == [not flag or place == 0 for place, flag in enumerate(flags)]
    assert Document.of_conversation([5] * 3, flags).learnt == ((1, 2),)
    assert Document.of_text([5] * 3).prompt == [True, False, False]


@given(st.one_of(st.integers(8, 60), st.just(120)), st.integers(0, 3))
def test_batches_score_answers_only(length: int, seed: int) -> None:
    shards = CONVERSATIONS
    tokenizer, end = shards.tokenizer(), shards.manifest.end_token_id
    packs = Packs(shards.train, length=length, num_tokens=length + 40, start_token_id=end, seed=seed)
    scored: list[str] = []
    for number in range(packs.num_in_epoch(0)):
        batch = packs[number]
        assert batch.prompt is not None
        assert batch.num_scored == packs.num_scored(number) > 0
        scored += [
            tokenizer.decode(batch.tokens[span.begin : span.end].tolist(), skip_special=False)
            for span in batch.spans
        ]
        for bound in batch.bounds[:-1]:
            # A start token is put before what is learnt, and not before a prompt.
            assert bool(batch.prompt[bound]) or (
                int(batch.tokens[bound]) == end and not batch.prompt[bound + 1]
            )
    wanted = "".join(f"answer {number}{END}" + "m" * number + END for number in range(30))
    assert sorted("".join(scored)) == sorted(wanted)
    if length == 120:  # no conversation is cut
        assert sorted(scored) == sorted(
            [f"answer {n}{END}" for n in range(30)] + ["m" * n + END for n in range(30)]
        )


@pytest.fixture(autouse=True, scope="module")
def _conversations(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("conversations")
    global CONVERSATIONS
    CONVERSATIONS = make(folder / "shards", conversations(folder / "chat.jsonl", 30), shard_tokens=300)


CONVERSATIONS: Shards
"""Thirty conversations of two answers each, in several shards."""


def test_conversations_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [turns("only a question"), turns("a question", "an answer", "and a question that nobody answers")]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    shards = make(tmp_path / "shards", tmp_path / "chat.jsonl")
    assert shards.manifest.num_unanswered == 1
    text = shards.tokenizer().decode(
        shards.train.read(0, int(shards.train.ends[-1])).tolist(), skip_special=False
    )
    assert text == f"{END}user: a question{END}assistant: an answer{END}"


def test_a_cut_prompt_file_is_named(tmp_path: Path) -> None:
    shards = make(tmp_path / "shards", conversations(tmp_path / "chat.jsonl", 5))
    entry = shards.manifest.splits["train"].shards[0]
    assert entry.prompt_file is not None
    np.save(shards.folder / entry.prompt_file, np.zeros(3, np.uint8))
    with pytest.raises(Exception, match=entry.prompt_file):
        Shards.open(shards.folder)


def test_a_conversion_reads_conversations_from_their_beginning(tmp_path: Path) -> None:
    path, tokenizer = conversations(tmp_path / "chat.jsonl", 9), byte_tokenizer()
    documents = sample_windows([path], tokenizer, num_tokens=10_000, length=50, seed=0)
    assert len(documents) == 9
    for document in documents:
        assert len(document.ids) <= 50
        words = [
            tokenizer.decode(document.ids[begin:end], skip_special=False) for begin, end in document.learnt
        ]
        assert words[0].startswith("answer ")
        assert words[0].endswith(END)
        assert set("".join(words[1:])) <= {"m", *END}
    short = draw_windows([CHAT], tokenizer, 10, np.random.default_rng(0))
    assert list(short) == []  # no answer within ten tokens


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.2, 5.0)])
def test_an_epoch_has_the_shares_asked_for(tmp_path: Path, weights: tuple[float, float]) -> None:
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join("a" * (3 * n % 80 + 5) for n in range(120)))
    (tmp_path / "b.txt").write_text("\n<|doc|>\n".join("b" * (5 * n % 40 + 5) for n in range(50)))
    shards = make(tmp_path / "shards", tmp_path / "a.txt", tmp_path / "b.txt", weights=weights)
    length, end = 32, shards.manifest.end_token_id
    packs = Packs(
        shards.train,
        length=length,
        num_tokens=200,
        start_token_id=end,
        seed=0,
        weights=shards.manifest.weights,
    )
    epochs: list[list[str]] = []
    first = 0
    for epoch in range(3):
        counts = {"a": 0, "b": 0}
        rows: list[str] = []
        last = first + packs.num_in_epoch(epoch)
        for batch in map(packs.__getitem__, range(first, last)):
            for begin, stop in pairwise(batch.bounds):
                letter = "a" if ord("a") in batch.tokens[begin:stop] else "b"
                counts[letter] += stop - begin - 1
                rows.append(f"{letter}{stop - begin}")
        first = last
        epochs.append(rows)
        share = weights[0] / sum(weights)
        assert abs(counts["a"] - share * sum(counts.values())) <= length
        whole = {"a": int(shards.train.ends[119]), "b": int(shards.train.ends[-1] - shards.train.ends[119])}
        assert any(abs(counts[letter] - whole[letter]) <= length for letter in whole)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [9.0, 1.0]])
def test_files_give_a_conversion_their_shares(tmp_path: Path, weights: list[float]) -> None:
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join("a" * 90 for _ in range(3)))
    (tmp_path / "b.txt").write_text("\n<|doc|>\n".join("b" * 90 for _ in range(60)))
    tokenizer = byte_tokenizer()

    def sample(shares: list[float] | None) -> dict[str, int]:
        documents = sample_windows(
            [tmp_path / "a.txt", tmp_path / "b.txt"],
            tokenizer,
            num_tokens=2000,
            length=64,
            seed=0,
            weights=shares,
        )
        counts = {"a": 0, "b": 0}
        for document in documents:
            counts[tokenizer.decode(document.ids)[0]] += len(document.ids)
        return counts

    counts = sample(weights)
    for letter, weight in zip("ab", weights, strict=True):
        assert 0 <= counts[letter] - 2000 * weight / sum(weights) < 64
    assert sample(None)["a"] < 300  # without weights a file is read once
