"""A model writes its own training text: the documents, the choice among them, and a file that can be continued."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import END, START, TEMPLATE, byte_tokenizer, tiny_checkpoint
from torch import Tensor

from command_line import Command
from unmask.decoding.candidates import Shape, draw, sampling_law
from unmask.errors import FailureError, UsageError
from unmask.layout import causal_layout
from unmask.model.checkpoint import Checkpoint, save_checkpoint
from unmask.model.transformer import Transformer
from unmask.rng import Stream, uniforms
from unmask.training.documents import read_texts
from unmask.training.selection import Selection, SelectionConfig
from unmask.training.synthesis import Script, SynthesisConfig, write_batch
from unmask.training.synthetic_corpus import CorpusConfig, CorpusState, SyntheticCorpus

CONFIG = replace(tiny_models.CONFIG, vocab_size=12)
SYNTHESIS = SynthesisConfig(length=30, batch_size=12, free_tokens=6, temperatures=(0.0, 0.7, 2.0), top_k=8)
HEAD, BRIDGE, STOP = (0, 3, 5), (1, 9, 10, 2, 11), 2
"""With twelve tokens to choose from, documents end early and often."""


def slow_document(number: int, config: SynthesisConfig, *, bridge: tuple[int, ...], seed: int) -> list[int]:
    """Write one document by itself, without a cache, rule by rule."""
    model = tiny_models.random_transformer(CONFIG)
    document, owed, answers = list(HEAD), list[int](), False
    while len(document) < config.length:
        place = len(document) - len(HEAD)
        if owed:
            document.append(owed.pop(0))
            continue
        with torch.no_grad():
            tokens = torch.tensor(document)
            logits = model.logits(model(tokens, causal_layout(len(tokens)))[-1])
        own = config.temperatures[number % config.batch_size % len(config.temperatures)]
        temperature = 1.0 if place < config.free_tokens and not answers else own
        law = sampling_law(logits, Shape(temperature, config.top_k, config.top_p))
        noise = torch.from_numpy(uniforms([seed], [[place]], [number], Stream.TOKEN))
        # The ranks that the noise chooses among are those of the probabilities, largest first.
        order = law.argsort(descending=True, stable=True)
        token = int(order[draw(law[order][None], noise[0])])
        document.append(token)
        if bridge and token == bridge[0] and not answers:
            owed, answers = list(bridge[1:]), True
        elif token == STOP:
            break
    return document


@pytest.mark.parametrize("bridge", [(), BRIDGE], ids=["text", "chat"])
def test_a_batch_is_its_documents_written_one_by_one(bridge: tuple[int, ...]) -> None:
    model, numbers = tiny_models.random_transformer(CONFIG), range(24, 36)
    batch = write_batch(model, HEAD, SYNTHESIS, stop_token=STOP, seed=7, batch=2, bridge=bridge)
    slow = [slow_document(number, SYNTHESIS, bridge=bridge, seed=7) for number in numbers]
    assert batch == slow
    assert len({len(document) for document in batch}) > 3  # documents left the batch one after the other
    assert any(document[-1] == STOP for document in batch)


def test_a_document_does_not_depend_on_its_batch() -> None:
    model = tiny_models.random_transformer(CONFIG)
    wide = write_batch(model, HEAD, SYNTHESIS, stop_token=STOP, seed=0, batch=1)
    half = replace(SYNTHESIS, batch_size=6)
    narrow = [write_batch(model, HEAD, half, stop_token=STOP, seed=0, batch=batch) for batch in (2, 3)]
    assert wide == [document for documents in narrow for document in documents]


def test_the_script_of_a_chat_template() -> None:
    tokenizer = byte_tokenizer()
    script = Script.of(tokenizer)
    assert tokenizer.decode(script.head, skip_special=False) == "<|start|>user\n"
    assert tokenizer.decode(script.bridge, skip_special=False) == "<|end|>\n<|start|>assistant\n"
    question, answer = (tokenizer.encode(text) for text in ("what is it?", "a cat"))
    document = [*script.head, *question, *script.bridge, *answer, END]
    messages = script.messages(document, tokenizer)
    assert messages == [
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a cat"},
    ]
    rendered = tokenizer.render_chat(messages, add_generation_prompt=False)
    assert rendered[: len(document)] == document
    assert script.messages(document[: len(script.head) + 4], tokenizer) is None
    assert script.messages([*script.head, *question, *script.bridge], tokenizer) is None


@pytest.mark.parametrize(
    "template", [None, TEMPLATE.replace("<|end|>", " over")], ids=["none", "no token that ends a turn"]
)
def test_a_script_without_a_bridge(template: str | None) -> None:
    script = Script.of(replace(byte_tokenizer(), chat_template=template))
    assert script.bridge == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (-1.0,)}, "temperatures"),
        ({"top_p": 0.0}, "top_p"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_ways_to_write(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SynthesisConfig(**changes)  # type: ignore[arg-type]


STORY = "The old man went down to the river and counted his boats, one after the other, until night fell."


def test_what_is_dropped() -> None:
    selection = Selection(SelectionConfig(min_words=8, max_repetition=0.3, max_overlap=0.5))
    texts = [
        STORY,
        "Too short.",
        "again and again " * 10,
        STORY.upper().replace(",", " --"),  # the same words
        STORY + " Then he slept.",
        "The old man went down to the river, but all his boats had gone, and so had the river itself.",
        None,
        "川は静かに流れ、古い舟は岸に残された。",
    ]
    kept, dropped = selection.sift(texts)
    assert kept == [0, 5, 7]
    expected = {"short": 1, "repetitive": 1, "duplicate": 1, "near-duplicate": 1, "malformed": 1}
    assert dropped == expected


def test_without_limits_only_copies_are_dropped() -> None:
    selection = Selection(SelectionConfig(min_words=1, max_repetition=1.0, max_overlap=1.0))
    kept, dropped = selection.sift([STORY, STORY, STORY + " Then he slept.", "word " * 50])
    assert kept == [0, 2, 3]
    assert dropped == {"duplicate": 1}


def test_languages() -> None:
    pytest.importorskip("py3langid")
    german = "Der alte Mann ging hinunter zum Fluss und zählte seine Boote, bis es dunkel wurde."
    selection = Selection(SelectionConfig(min_words=5, languages=("en",)))
    assert selection.fault(STORY) is None
    assert selection.fault(german) == "language"
    with pytest.raises(UsageError, match="klingon"):
        Selection(SelectionConfig(languages=("klingon",)))


CORPUS = CorpusConfig(
    "tiny",
    "float32",
    synthesis=replace(SYNTHESIS, length=60, batch_size=8, temperatures=(0.9, 1.1), top_k=0),
    selection=SelectionConfig(min_words=1, max_repetition=1.0, max_overlap=1.0),
)


class Brief(Transformer):
    """A model that soon comes to an end."""

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        logits[:, END] += 3.0
        return logits


def brief_checkpoint() -> Checkpoint:
    plain = tiny_checkpoint()
    model = Brief(plain.transformer.config).requires_grad_(False)
    model.load_state_dict(plain.transformer.state_dict())
    return replace(plain, transformer=model)


CHECKPOINT = brief_checkpoint()


def fill(path: Path, num_tokens: int, *, stop_after: int | None = None) -> CorpusState:
    """Write a corpus, and be interrupted once so many tokens are written."""

    def observe(state: CorpusState) -> None:
        if stop_after is not None and state.num_written >= stop_after:
            raise KeyboardInterrupt

    return SyntheticCorpus(CORPUS, path, CHECKPOINT).fill(num_tokens, observe)


def test_a_corpus_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    state = fill(whole, 600)
    assert state.num_tokens >= 600
    assert state.num_batches > 2
    with pytest.raises(KeyboardInterrupt):
        fill(cut, 600, stop_after=state.num_written // 2)
    with cut.open("a") as file:
        file.write('{"text": "written after the last st')
    assert fill(cut, 600) == replace(state, seconds=fill(cut, 600).seconds)
    assert cut.read_bytes() == whole.read_bytes()
    longer = fill(cut, state.num_tokens + 1)
    assert longer.num_batches == state.num_batches + 1
    assert cut.read_bytes().startswith(whole.read_bytes())


def test_the_lines_of_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    state = fill(path, 300)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(lines) == state.num_documents
    assert sum(line["num_tokens"] for line in lines) == state.num_tokens
    for line in lines:
        assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
        assert line["text"] == "\n\n".join(message["content"] for message in line["messages"])
    assert list(read_texts(path)) == [line["text"] for line in lines]  # what unmask convert --text reads
    written = state.num_documents + sum(state.dropped.values())
    assert written == state.num_batches * CORPUS.synthesis.batch_size


def test_a_model_without_a_chat_template_writes_plain_text(tmp_path: Path) -> None:
    bare = replace(byte_tokenizer(), chat_template=None, prefix_ids=(START,))
    corpus = SyntheticCorpus(CORPUS, tmp_path / "corpus.jsonl", replace(CHECKPOINT, tokenizer=bare))
    corpus.fill(200, lambda state: None)
    line = json.loads((tmp_path / "corpus.jsonl").read_text("utf-8").splitlines()[0])
    assert set(line) == {"text", "finished", "num_tokens"}
    nothing = replace(bare, prefix_ids=())
    with pytest.raises(UsageError, match="begin a text"):
        SyntheticCorpus(CORPUS, tmp_path / "other.jsonl", replace(CHECKPOINT, tokenizer=nothing))


def test_a_corpus_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UsageError, match="exists already"):
        fill(path, 100)
    assert path.read_text() == "{}\n"
    path.unlink()
    fill(path, 100)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="seed=0, not 1"):
        SyntheticCorpus(replace(CORPUS, seed=1), path, CHECKPOINT)
    assert path.read_bytes() == before


def test_filters_that_keep_nothing_are_named(tmp_path: Path) -> None:
    strict = replace(CORPUS, selection=SelectionConfig(min_words=1000))
    with pytest.raises(FailureError, match=r"\d+ malformed, \d+ short"):
        SyntheticCorpus(strict, tmp_path / "corpus.jsonl", CHECKPOINT).fill(100, lambda state: None)


def test_the_command(unmask_command: Command, tmp_path: Path) -> None:
    save_checkpoint(CHECKPOINT, tmp_path / "base")
    out = tmp_path / "corpus.jsonl"
    options = "--tokens 100 --length 100 --rows 48 --temperature 1 --top-k 0 --min-words 1 --max-repetition 1".split()
    result = unmask_command("synthesize", tmp_path / "base", "--out", out, *options, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["num_tokens"] >= 100
    assert set(asdict(CorpusState())) | {"file", "tokens_per_s"} == set(report)
    again = unmask_command("synthesize", tmp_path / "base", "--out", out, *options)
    assert again.status == 0
    assert f"{report['num_documents']} documents" in again.out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-overlap", "2"], "max_overlap"),
        (["--temperature", "-1"], "temperatures"),
        (["--length", "4"], "length=4"),
    ],
)
def test_wrong_options(unmask_command: Command, tmp_path: Path, options: list[str], named: str) -> None:
    save_checkpoint(CHECKPOINT, tmp_path / "base")
    out = tmp_path / "corpus.jsonl"
    result = unmask_command("synthesize", tmp_path / "base", "--out", out, *options)
    assert result.status == 2
    assert named in result.err
    assert not out.exists()
    assert "jsonl" in unmask_command("synthesize", "x", "--out", tmp_path / "corpus.txt").err
