"""Text becomes shards that hold exactly it; broken shards are named."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from tiny_training import make_shards

from unmask.errors import CacheError, TrainingError, UnmaskError, UsageError
from unmask.training.corpus import read_corpus
from unmask.training.documents import read_texts
from unmask.training.preparation import PreparationConfig, PreparationEvent, prepare
from unmask.training.shards import MANIFEST_FILE, Shards, Split
from unmask.training.tokenizer_training import train_bpe

CHAT = [
    [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": str(2 * i)}]
    for i in range(30)
]


def make(folder: Path, *sources: Path, tokenizer: str = "bytes", **changes: object) -> Shards:
    settings: dict[str, object] = {"held_out_share": 0.2} | changes
    config = PreparationConfig(tuple(map(str, sources)), tokenizer, **settings)  # type: ignore[arg-type]
    return prepare(config, folder, lambda event: None, offline=True, say=lambda message: None)


def texts_of(shards: Shards, split: Split | None) -> list[str]:
    """Return the documents of a split, decoded, and check that each ends with the one end token."""
    assert split is not None
    tokenizer, end = shards.tokenizer(), shards.manifest.end_token_id
    documents = []
    for begin, stop in zip([0, *split.ends[:-1]], split.ends, strict=True):
        ids = split.read(int(begin), int(stop)).tolist()
        assert ids[-1] == end
        documents.append(tokenizer.decode(ids[:-1], skip_special=False))
    return documents


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_shards_hold_the_corpus(tmp_path: Path, tokenizer: str) -> None:
    shards = make_shards(tmp_path, tokenizer=tokenizer, shard_tokens=200)
    assert len(shards.train.shards) > 1
    original = list(read_texts(tmp_path / "corpus.txt"))
    train, held_out = texts_of(shards, shards.train), texts_of(shards, shards.held_out)
    assert sorted(train + held_out) == sorted(original)
    assert [text for text in original if text in train] == train
    assert 0 < len(held_out) < len(train)
    for split, documents in ((shards.train, train), (shards.held_out, held_out)):
        assert split is not None
        assert split.sizes.tolist() == [len(text.encode()) for text in documents]


def test_how_frequent_tokens_are() -> None:
    split = Split(
        (np.array([0, 1, 1], np.uint8), np.array([1, 3], np.uint8)), np.array([3, 5]), np.array([3, 2])
    )
    np.testing.assert_allclose(np.exp(split.log_frequencies(4)), np.array([2, 4, 1, 2]) / 9)


def test_text_that_looks_like_a_special_token_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before <|end|> after\n")
    shards = make(tmp_path / "shards", tmp_path / "a.txt", held_out_share=0)
    assert texts_of(shards, shards.train) == ["before <|end|> after\n"]
    assert shards.train.read(0, int(shards.train.ends[0])).tolist().count(shards.manifest.end_token_id) == 1


def test_the_held_out_split_stays_when_documents_are_added_and_keeps_twins_together(tmp_path: Path) -> None:
    words = [f"document number {i}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join(words))
    (tmp_path / "b.txt").write_text("\n<|doc|>\n".join([*words[::-1], "another", "one more"]))
    few = make(tmp_path / "few", tmp_path / "a.txt")
    many = make(tmp_path / "many", tmp_path / "a.txt", tmp_path / "b.txt")
    held_out = {text.strip() for text in texts_of(few, few.held_out)}
    assert held_out <= {text.strip() for text in texts_of(many, many.held_out)}
    assert not held_out & {text.strip() for text in texts_of(many, many.train)}
    other = make(tmp_path / "other", tmp_path / "a.txt", seed=1)
    assert {text.strip() for text in texts_of(other, other.held_out)} != held_out


def test_a_tokenizer_learns_from_the_training_documents_only(tmp_path: Path) -> None:
    documents = [f"words {'abcdefghij'[i % 10] * (i // 10 + 2)}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join(documents))
    shards = make(tmp_path / "shards", tmp_path / "a.txt", tokenizer="bpe:290")
    train, held_out = texts_of(shards, shards.train), texts_of(shards, shards.held_out)
    learnt = shards.tokenizer().backend.get_vocab()
    assert learnt == train_bpe(train, 290).backend.get_vocab()
    assert learnt != train_bpe(train + held_out, 290).backend.get_vocab()


def test_jsonl_parquet_and_folders_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"row {i}" for i in range(30)]
    folder = tmp_path / "tables"
    folder.mkdir()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    parquet.write_table(pyarrow.table({"body": [*texts, None, "  "]}), folder / "b.parquet")
    assert list(read_corpus(str(tmp_path / "a.jsonl"))) == texts
    assert list(read_corpus(str(folder / "b.parquet"), "body")) == texts
    assert list(read_corpus(str(folder), "body")) == texts
    shards = make(tmp_path / "shards", folder / "b.parquet", column="body")
    assert sorted(texts_of(shards, shards.train) + texts_of(shards, shards.held_out)) == sorted(texts)


def test_a_folder_of_text_files_is_read_like_the_files(tmp_path: Path) -> None:
    (tmp_path / "books" / "more").mkdir(parents=True)
    (tmp_path / "books" / "a.txt").write_text("one\n<|doc|>\ntwo\nlines\n")
    with lzma.open(tmp_path / "books" / "more" / "b.txt.xz", "wt") as file:
        file.write("three\n")
    assert list(read_corpus(str(tmp_path / "books"))) == ["one\n", "two\nlines\n", "three\n"]


def test_conversations_are_written_in_the_tokenizers_template(tmp_path: Path) -> None:
    lines = (json.dumps({"messages": messages}) + "\n" for messages in CHAT)
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    shards = make(tmp_path / "shards", tmp_path / "chat.jsonl", held_out_share=0)
    assert "<|end|>user: What is 7 + 7?<|end|>assistant: 14" in texts_of(shards, shards.train)
    tokenizer = shards.tokenizer()
    prompt = tokenizer.render_chat(CHAT[7][:1])
    assert tokenizer.decode(prompt, skip_special=False) == "<|end|>user: What is 7 + 7?<|end|>assistant: "


@pytest.mark.parametrize(
    ("sources", "changes", "words"),
    [
        ((), {}, "there is no text"),
        (("missing.txt",), {}, "missing.txt does not exist"),
        (("a.txt", "missing.txt"), {"tokenizer": "bpe:200"}, "missing.txt does not exist"),
        (("missing.jsonl",), {}, "does not exist"),
        (("a.pdf",), {}, "of no known kind"),
        (("a.txt",), {"column": "text"}, "has no column 'text'"),
        (("a.jsonl",), {"column": "body"}, r"name one with --column: text\)"),
        (("a.jsonl",), {"column": "number"}, "neither text nor messages"),
        (("broken.jsonl",), {}, "cannot read .*broken.jsonl"),
        (("broken.parquet",), {}, "cannot read .*broken.parquet"),
        (("a.txt",), {"held_out_share": 1.0}, r"must lie in \[0, 1\)"),
        (("a.txt",), {"held_out_share": 1e-9}, "no document fell into the split 'held_out'"),
        (("a.txt",), {"tokenizer": "bpe:200"}, "cannot spell every byte"),
        (("a.txt",), {"tokenizer": "bpe:4096"}, "different tokens, not 4096"),
        (("a.txt",), {"tokenizer": "bpe"}, "names no size"),
        (("a.txt",), {"tokenizer": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing(
    tmp_path: Path, sources: tuple[str, ...], changes: dict[str, object], words: str
) -> None:
    (tmp_path / "a.txt").write_text("one\n<|doc|>\ntwo\n")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "number": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "one"\n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnmaskError, match=words):
        make(tmp_path / "shards", *(tmp_path / source for source in sources), **changes)  # type: ignore[arg-type]
    assert not [path for path in tmp_path.iterdir() if "shards" in path.name]


def test_offline_no_dataset_is_fetched(tmp_path: Path) -> None:
    config = PreparationConfig(("org/name",), "bytes")
    with pytest.raises(UsageError, match="org/name is a dataset of the hub"):
        prepare(config, tmp_path / "shards", lambda event: None, offline=True, say=lambda message: None)


def test_without_the_library_tables_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(TrainingError, match=r"datasets \(pip install 'unmask\[train\]'\)"):
        list(read_corpus(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("name", ["train-00000.npy", "train-documents.npy", "held_out-00000.npy"])
@pytest.mark.parametrize("size", [0, 40, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, size: int) -> None:
    make_shards(tmp_path)
    path = tmp_path / "shards" / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TrainingError, match=f"{name} is missing or cut short"):
        Shards.open(tmp_path / "shards")


def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path)
    folder = tmp_path / "shards"
    np.save(folder / "train-00000.npy", np.zeros(5, dtype="<u2"))
    with pytest.raises(TrainingError, match=r"holds 5 entries, dataset\.json says"):
        Shards.open(folder)
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(TrainingError, match=r"dataset\.json cannot be read"):
        Shards.open(folder)
    with pytest.raises(UsageError, match="holds no dataset"):
        Shards.open(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        make(folder, tmp_path / "corpus.txt")


def test_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 700_000)
    with pytest.raises(CacheError, match="no space left"):
        make(small_disk / "shards", tmp_path / "a.txt", held_out_share=0)
    assert list(small_disk.iterdir()) == []


def test_shards_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|doc|>\ntwo")
    (tmp_path / "same.txt").write_text("one\n<|doc|>\ntwo")
    (tmp_path / "other.txt").write_text("one\n<|doc|>\nTwo")
    a, same, other = (
        make(tmp_path / name, tmp_path / f"{name}.txt", held_out_share=0).identity
        for name in ("a", "same", "other")
    )
    assert a == same
    assert a != other


def test_progress_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join(f"text number {i}" for i in range(40)))
    events: list[PreparationEvent] = []
    config = PreparationConfig((str(tmp_path / "a.txt"),), "bpe:262", held_out_share=0.2)
    prepare(config, tmp_path / "shards", events.append, offline=True, say=lambda message: None)
    assert [event.stage for event in events] == ["learning the tokenizer", "tokenising"]
