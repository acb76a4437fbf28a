"""The adapter's files: PEFT reads them, and broken ones are refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import CONFIG, tiny_checkpoint

from unmask.config import AdapterConfig
from unmask.errors import CheckpointError
from unmask.layout import Layout, Segment
from unmask.model.adapter import MASK_FILE, WEIGHTS_FILE, Adapter
from unmask.model.checkpoint import save_checkpoint
from unmask.model.transformer import Transformer


def random_adapter(config: AdapterConfig) -> Adapter:
    adapter = Adapter(CONFIG, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return adapter.requires_grad_(False)


def test_saved_adapter_comes_back_the_same(tmp_path: Path) -> None:
    adapter = random_adapter(AdapterConfig(rank=3, alpha=6.0, targets=("q", "down")))
    adapter.save(tmp_path, base="base")
    loaded = Adapter.load(tmp_path, CONFIG)
    assert loaded.config == adapter.config
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_computes_the_same_states_from_the_same_folder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    checkpoint = tiny_checkpoint()
    save_checkpoint(checkpoint, tmp_path / "base")
    adapter = random_adapter(AdapterConfig(rank=3, alpha=6.0))
    adapter.save(tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens = torch.arange(10)
    ours: Transformer = checkpoint.transformer
    with torch.no_grad():
        expected = theirs(input_ids=tokens[None]).logits[0]
        layout = Layout([Segment(0, 10, adapter=True)])
        torch.testing.assert_close(
            ours.logits(ours(tokens, layout, None, adapter)), expected, rtol=0, atol=1e-5
        )
        plain = ours.logits(ours(tokens, Layout([Segment(0, 10)]), None, adapter))
        assert not torch.allclose(plain, expected, atol=1e-2)


def test_untrained_adapter_changes_nothing_but_the_mask() -> None:
    embeddings = torch.randn(CONFIG.vocab_size, CONFIG.hidden_size)
    adapter = Adapter.initialise(CONFIG, AdapterConfig(), embeddings, torch.Generator())
    torch.testing.assert_close(adapter.mask_embedding.detach(), embeddings.mean(0))
    ups = [value for name, value in adapter.state_dict().items() if name.endswith(".up")]
    assert ups
    assert not any(up.any() for up in ups)


def test_adapter_rows_that_lie_apart_are_each_updated() -> None:
    model, adapter = tiny_checkpoint().transformer, random_adapter(AdapterConfig(rank=2))
    segments = [Segment(0, 3, adapter=True), Segment(0, 3), Segment(0, 3, adapter=True)]
    tokens = torch.tensor([1, 2, 3] * 3)
    with torch.no_grad():
        first, plain, last = model(tokens, Layout(segments), None, adapter).split(3)
        alone = model(tokens[:3], Layout([segments[0]]), None, adapter)
        bare = model(tokens[:3], Layout([segments[1]]))
    for states, expected in ((first, alone), (last, alone), (plain, bare)):
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_broken_or_foreign_files_are_refused(tmp_path: Path) -> None:
    random_adapter(AdapterConfig(rank=2)).save(tmp_path, base="base")
    whole = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(whole[:200])
    with pytest.raises(CheckpointError, match="adapter"):
        Adapter.load(tmp_path, CONFIG)
    (tmp_path / WEIGHTS_FILE).write_bytes(whole)
    save_file({"mask_embedding": torch.zeros(3)}, tmp_path / MASK_FILE)
    with pytest.raises(CheckpointError, match="mask_embedding"):
        Adapter.load(tmp_path, CONFIG)
    (tmp_path / MASK_FILE).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        Adapter.load(tmp_path, CONFIG)
