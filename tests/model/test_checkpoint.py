"""Folders load as they were saved, and every broken one is refused with the file and the tensor."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIG, END, logits_of, random_transformer, tiny_checkpoint, write_gguf

from unmask.config import AdapterConfig
from unmask.errors import CacheError, CheckpointError, UsageError
from unmask.model import gguf_file, weights
from unmask.model.adapter import Adapter
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import Checkpoint, base_source, load_checkpoint, save_checkpoint

TOKENS = torch.arange(30) % CONFIG.vocab_size


def with_adapter(checkpoint: Checkpoint) -> Checkpoint:
    adapter = Adapter(checkpoint.transformer.config, AdapterConfig(rank=2, alpha=2.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
    mask = checkpoint.transformer.config.vocab_size
    return replace(
        checkpoint, adapter=adapter, card=replace(checkpoint.card, mask_token_id=mask, block_length=4)
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_checkpoint_loads_again(tied: bool, tmp_path: Path) -> None:
    saved = with_adapter(tiny_checkpoint(replace(CONFIG, tie_embeddings=tied)))
    save_checkpoint(saved, tmp_path / "model")
    loaded = load_checkpoint(str(tmp_path / "model"))
    assert loaded.transformer.config == saved.transformer.config
    assert torch.equal(logits_of(loaded.transformer, TOKENS), logits_of(saved.transformer, TOKENS))
    assert loaded.adapter is not None
    assert saved.adapter is not None
    assert same(loaded.adapter, saved.adapter)
    assert (loaded.card.mask_token_id, loaded.card.block_length) == (CONFIG.vocab_size, 4)
    assert loaded.tokenizer.encode("a") == saved.tokenizer.encode("a")
    assert not any(parameter.requires_grad for parameter in loaded.transformer.parameters())
    bare = load_checkpoint(str(tmp_path / "model"), adapter="none")
    assert (bare.adapter, bare.card.mask_token_id) == (None, None)


def test_a_folder_without_a_card_gets_one(tiny_folder: Path) -> None:
    card = load_checkpoint(str(tiny_folder)).card
    assert (card.name, card.family, card.licence) == (str(tiny_folder), "llama", "unknown")
    assert card.stop_token_ids == (END, 3)
    assert (card.mask_token_id, card.adapter, card.context_length) == (None, None, CONFIG.max_positions)


def test_bfloat16(tiny_folder: Path) -> None:
    transformer = load_checkpoint(str(tiny_folder), dtype="bfloat16").transformer
    expected = random_transformer().embed.weight.to(torch.bfloat16)
    assert torch.equal(transformer.embed.weight, expected)
    with pytest.raises(UsageError, match="float16"):
        load_checkpoint(str(tiny_folder), dtype="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["banana", "cuda:77"])
def test_devices_that_are_not(device: str, tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match=f"device '{device}'") as caught:
        load_checkpoint(str(tiny_folder), device=device)
    assert "\n" not in str(caught.value)


@pytest.fixture
def adapter_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter, and a card that names its base."""
    folder = tmp_path / "converted"
    checkpoint = with_adapter(tiny_checkpoint())
    assert checkpoint.adapter is not None
    checkpoint.adapter.save(folder, base=str(tiny_folder))
    card = replace(checkpoint.card, name="mine", base=str(tiny_folder), logit_shift=False)
    (folder / "unmask.json").write_text(card.to_json())
    return folder


def test_an_adapter_folder_loads_with_its_base(adapter_folder: Path, tiny_folder: Path) -> None:
    for loaded in (
        load_checkpoint(str(adapter_folder)),
        load_checkpoint(str(tiny_folder), adapter=str(adapter_folder)),
    ):
        assert loaded.adapter is not None
        card = loaded.card
        assert (card.mask_token_id, card.block_length, card.logit_shift) == (CONFIG.vocab_size, 4, False)
        assert card.adapter == str(adapter_folder)
    assert load_checkpoint(str(adapter_folder), adapter="none").adapter is None


def test_a_run_stands_for_its_last_model(adapter_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, source in (("step-00000090", tiny_folder), ("step-00000100", adapter_folder)):
        shutil.copytree(source, run / step / "model")
    (run / "step-00000200.partial").mkdir()
    last = str(run / "step-00000100" / "model")
    for loaded in (load_checkpoint(str(run)), load_checkpoint(str(tiny_folder), adapter=str(run))):
        assert loaded.card.adapter == last
    assert base_source(str(run)) == str(tiny_folder)


def test_an_untrained_adapter_changes_nothing_yet(tiny_folder: Path) -> None:
    first, second = (load_checkpoint(str(tiny_folder), adapter="untrained") for _ in range(2))
    assert first.adapter is not None
    assert second.adapter is not None
    assert same(first.adapter, second.adapter)
    assert torch.equal(first.adapter.mask_embedding, first.transformer.embed.weight.mean(0))
    assert first.card.mask_token_id == CONFIG.vocab_size


def test_adapters_that_cannot_be(adapter_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter folder"):
        load_checkpoint(str(tiny_folder), adapter=str(tmp_path))
    (adapter_folder / "unmask.json").write_text("{}")
    with pytest.raises(CheckpointError, match="card format None"):
        load_checkpoint(str(adapter_folder))
    (adapter_folder / "unmask.json").unlink()
    with pytest.raises(CheckpointError, match=r"no unmask\.json"):
        load_checkpoint(str(adapter_folder))
    described = json.loads((adapter_folder / "adapter_config.json").read_text())
    (adapter_folder / "adapter_config.json").write_text(
        json.dumps({**described, "base_model_name_or_path": ""})
    )
    with pytest.raises(CheckpointError, match="which model it adapts"):
        load_checkpoint(str(adapter_folder))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite the weights with some tensors replaced, added or (None) left out; ``__`` stands for a dot."""
    state: dict[str, Any] = load_file(folder / "model.safetensors")
    state = {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file(
        {name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors"
    )


FAULTS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"model__norm__weight": None}, "has no tensor model.norm.weight"),
    "shape": (
        {"model__norm__weight": torch.ones(3)},
        r"model.norm.weight has shape (3,), config.json says (16,)",
    ),
    "unknown": ({"model__extra__weight": torch.ones(3)}, "unknown tensor model.extra.weight"),
    "integer": ({"model__norm__weight": torch.ones(16, dtype=torch.int8)}, "model.norm.weight is I8"),
    "no embeddings": ({"model__embed_tokens__weight": None}, "has no tensor model.embed_tokens.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_tensors_are_named_with_their_file(fault: str, tiny_folder: Path) -> None:
    changes, message = FAULTS[fault]
    edit_weights(tiny_folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(tiny_folder))
    assert message in str(caught.value)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_of_older_files_that_hold_nothing(tiny_folder: Path) -> None:
    edit_weights(tiny_folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(2))
    load_checkpoint(str(tiny_folder))


def test_where_config_and_file_disagree_on_tying_the_file_is_right(tmp_path: Path) -> None:
    saved = tiny_checkpoint()
    save_checkpoint(saved, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    loaded = load_checkpoint(str(tmp_path / "m"))
    assert torch.equal(logits_of(loaded.transformer, TOKENS), logits_of(saved.transformer, TOKENS))
    edit_weights(tmp_path / "m", lm_head__weight=saved.transformer.embed.weight.clone())
    assert load_checkpoint(str(tmp_path / "m")).transformer.config.tie_embeddings


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(size: int, tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or no safetensors file"):
        load_checkpoint(str(tiny_folder))


def shard(folder: Path) -> None:
    """Spread the weights over two files with an index."""
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in files.items():
        save_file({name: state[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_shards(tiny_folder: Path) -> None:
    expected = logits_of(load_checkpoint(str(tiny_folder)).transformer, TOKENS).clone()
    shard(tiny_folder)
    assert torch.equal(logits_of(load_checkpoint(str(tiny_folder)).transformer, TOKENS), expected)


def test_a_missing_shard(tiny_folder: Path) -> None:
    shard(tiny_folder)
    (tiny_folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors does not exist"):
        load_checkpoint(str(tiny_folder))


def test_a_shard_without_what_the_index_promises(tiny_folder: Path) -> None:
    shard(tiny_folder)
    state = load_file(tiny_folder / "b.safetensors")
    lost = sorted(state)[0]
    del state[lost]
    save_file(state, tiny_folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=rf"b\.safetensors has no tensor {lost}"):
        load_checkpoint(str(tiny_folder))


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", None, "does not exist"),
        ("config.json", "{", "cannot read"),
        ("config.json", "[]", "must hold a JSON object"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("unmask.json", "{}", "card format None"),
        ("unmask.json", '{"format": 1, "name": 3}', "unmask.json"),
        ("unmask.json", "nonsense", "not a model card"),
    ],
)
def test_broken_folders(file: str, content: str | None, named: str, tiny_folder: Path) -> None:
    (tiny_folder / file).unlink(missing_ok=True)
    if content is not None:
        (tiny_folder / file).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(tiny_folder))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        ("smollm2-136m", UsageError, "did you mean 'smollm2-135m'?"),
        ("gpt-17", UsageError, "choose from smollm2-135m"),
        ("", UsageError, "unknown model ''"),
        ("./nowhere", CheckpointError, "does not exist"),
        ("nowhere.gguf", CheckpointError, "does not exist"),
        ("a/b/c", CheckpointError, "does not exist"),
    ],
)
def test_sources_that_are_not(source: str, error: type[Exception], named: str, cache: Path) -> None:
    with pytest.raises(error) as caught:
        load_checkpoint(source)
    assert named in str(caught.value)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_dequantising(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", random_transformer())
    monkeypatch.setattr(gguf_file, "_write_safetensors", full)
    with pytest.raises(CacheError, match=r"no space left on the disk.*UNMASK_CACHE"):
        load_checkpoint(str(tmp_path / "m.gguf"))
    assert list((cache / "dequantised").iterdir()) == []


def test_an_interruption_while_dequantising(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    write_gguf(tmp_path / "m.gguf", random_transformer())
    monkeypatch.setattr(gguf_file, "_write_safetensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(str(tmp_path / "m.gguf"))
    assert list((cache / "dequantised").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("UNMASK_CACHE", str(cache))
    load_checkpoint(str(tmp_path / "m.gguf"))


def test_a_cache_that_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", random_transformer())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot write"):
        load_checkpoint(str(tmp_path / "m.gguf"))


def test_a_full_disk_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_in_rust(*_: object, **__: object) -> None:
        raise weights.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(weights, "save_file", full_in_rust)
    with pytest.raises(CacheError, match=r"no space left on the disk.*another folder"):
        save_checkpoint(tiny_checkpoint(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_something(tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        save_checkpoint(tiny_checkpoint(), tiny_folder)


def test_cards_survive_their_file() -> None:
    card = ModelCard(
        "n", "llama", "MIT", "d", 8, mask_token_id=3, stop_token_ids=(1, 2), base="b", logit_shift=False
    )
    assert ModelCard.from_json(card.to_json(), origin="x") == card


def test_a_model_that_sees_whole_texts_takes_no_adapter() -> None:
    with pytest.raises(UsageError, match="sees whole texts both ways"):
        load_checkpoint("tiny-masked", adapter="untrained")
    assert load_checkpoint("tiny-masked", adapter="none").adapter is None
