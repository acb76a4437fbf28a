"""GGUF files: every quantisation, llama.cpp's row order, metadata to config and tokenizer, and broken files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from tiny_models import CONFIG, START, TEMPLATE, logits_of, random_transformer, write_gguf

from unmask.config import RopeConfig, TransformerConfig
from unmask.errors import CheckpointError
from unmask.model.checkpoint import load_checkpoint
from unmask.model.gguf_file import GgufFile

KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)

WIDE = TransformerConfig(
    vocab_size=264,
    hidden_size=256,  # one block of the K-quants
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    intermediate_size=256,
    max_positions=64,
)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (40,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_quantisation_reads_as_the_gguf_package_does(kind: Kind, tmp_path: Path) -> None:
    raw = write_gguf(tmp_path / "m.gguf", random_transformer(WIDE), kind=kind, architecture="qwen3")
    source = GgufFile.open(tmp_path / "m.gguf")
    for name, stored in raw.items():
        used = kind if stored.ndim == 2 else Kind.F32
        expected = dequantize(stored, used)
        assert np.isfinite(expected).all()
        assert expected.std() > 0
        assert np.array_equal(source.read(name), expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_becomes_a_folder_once(
    kind: Kind, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    raw = write_gguf(path, random_transformer(replace(WIDE, qkv_bias=True)), kind=kind, architecture="qwen2")
    first = load_checkpoint(str(path)).transformer
    weights = first.layers[0].mlp.down.weight  # type: ignore[union-attr]
    assert torch.equal(weights, torch.from_numpy(dequantize(raw["blk.0.ffn_down.weight"], kind)))
    monkeypatch.setattr(gguf, "GGUFReader", None)
    again = load_checkpoint(str(path)).transformer
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert len(list((cache / "dequantised").iterdir())) == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral3"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_survive_the_row_order_of_llama_cpp(
    architecture: str, tied: bool, tokens: torch.Tensor, tmp_path: Path, cache: Path
) -> None:
    config = replace(
        CONFIG, tie_embeddings=tied, qkv_bias=architecture == "qwen2", qk_norm=architecture == "qwen3"
    )
    model = random_transformer(config)
    write_gguf(tmp_path / "m.gguf", model, architecture=architecture)
    loaded = load_checkpoint(str(tmp_path / "m.gguf"))
    assert loaded.transformer.config.tie_embeddings == tied
    assert torch.equal(logits_of(loaded.transformer, tokens), logits_of(model, tokens))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_logits_equal_transformers_reading_the_same_file(
    architecture: str, tokens: torch.Tensor, tmp_path: Path, cache: Path
) -> None:
    model = random_transformer(replace(CONFIG, qkv_bias=architecture == "qwen2", tie_embeddings=True))
    write_gguf(tmp_path / "m.gguf", model, architecture=architecture)
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    loaded = load_checkpoint(str(tmp_path / "m.gguf"))
    torch.testing.assert_close(logits_of(loaded.transformer, tokens), expected, atol=1e-4, rtol=0)


ROPES: dict[str, tuple[dict[str, Any], RopeConfig]] = {
    "none": ({"rope.scaling.type": "none"}, RopeConfig()),
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        RopeConfig(scaling="linear", factor=2.0),
    ),
    "linear, as llama.cpp assumes": (
        {"rope.scaling.factor": 4.0},
        RopeConfig(scaling="linear", factor=4.0),
    ),
    "yarn": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_beta_fast": 16.0,
        },
        RopeConfig(scaling="yarn", factor=2.0, original_max_positions=32, beta_fast=16.0),
    ),
}


@pytest.mark.parametrize("case", ROPES)
def test_rope_metadata(case: str, tmp_path: Path, cache: Path) -> None:
    extra, expected = ROPES[case]
    write_gguf(
        tmp_path / "m.gguf",
        random_transformer(),
        extra={f"llama.{key}": value for key, value in extra.items()},
    )
    assert load_checkpoint(str(tmp_path / "m.gguf")).transformer.config.rope == expected


def test_the_query_scale_of_ministral(tmp_path: Path, cache: Path) -> None:
    extra = {
        "mistral3.rope.scaling.type": "yarn",
        "mistral3.rope.scaling.factor": 4.0,
        "mistral3.rope.scaling.original_context_length": 16,
        "mistral3.rope.scaling.yarn_log_multiplier": 1.0,
        "mistral3.attention.temperature_scale": 0.1,
    }
    write_gguf(tmp_path / "m.gguf", random_transformer(), architecture="mistral3", extra=extra)
    assert load_checkpoint(str(tmp_path / "m.gguf")).transformer.config.rope == RopeConfig(
        scaling="yarn",
        factor=4.0,
        original_max_positions=16,
        mscale=1.0,
        mscale_all_dim=1.0,
        query_scale_beta=0.1,
    )


def llama3_divisors(theta: float, size: int, factor: float) -> np.ndarray:
    """Return what llama.cpp's converter stores, frequency by frequency."""
    divisors = []
    for pair in range(size // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / size)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def test_llama3_rope_from_its_divisors(tmp_path: Path, cache: Path) -> None:
    model = random_transformer(replace(CONFIG, head_size=64, rope=RopeConfig(theta=500_000.0)))
    divisors = llama3_divisors(500_000.0, 64, 32.0)
    assert len(set(divisors.tolist())) > 3
    write_gguf(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": divisors})
    assert load_checkpoint(str(tmp_path / "m.gguf")).transformer.config.rope == RopeConfig(
        theta=500_000.0, scaling="llama3", factor=32.0, original_max_positions=8192
    )
    write_gguf(tmp_path / "n.gguf", model, tensors={"rope_freqs.weight": divisors**2})
    with pytest.raises(CheckpointError, match="rope_freqs"):
        load_checkpoint(str(tmp_path / "n.gguf"))


def test_tokenizer_and_template_come_along(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_transformer())
    loaded = load_checkpoint(str(tmp_path / "m.gguf"))
    tokenizer = loaded.tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.decode(tokenizer.encode("the café 12\n")) == "the café 12\n"
    assert tokenizer.encode("the") == [START + 3]
    assert tokenizer.prefix_ids == ()
    assert tokenizer.special_ids == {START, START + 1}
    assert tokenizer.encode("<pad0>") == [START + 4]  # user-defined: one token, but not a control token
    assert len(tokenizer.encode("<|end|>")) == len("<|end|>")
    assert loaded.card.stop_token_ids == (START + 1,)


def test_bos_where_the_file_asks_for_it(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_transformer(), pre="llama-bpe")
    tokenizer = load_checkpoint(str(tmp_path / "m.gguf")).tokenizer
    assert tokenizer.encode_prompt("a") == [START, *tokenizer.encode("a")]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"extra": {"llama.expert_count": 8}}, "llama.expert_count=8"),
    "a window": ({"extra": {"llama.attention.sliding_window": 16}}, "sliding_window=16"),
    "long rope": ({"extra": {"llama.rope.scaling.type": "longrope"}}, "rope_type 'longrope'"),
    "an architecture": ({"architecture": "gemma3"}, "'gemma3'"),
    "a pre-tokenizer": ({"pre": "bloom"}, "tokenizer.ggml.pre 'bloom'"),
    "a tensor": (
        {"tensors": {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}},
        "blk.0.attn_sinks.weight",
    ),
    "a missing tensor": ({"drop": "blk.1.ffn_up.weight"}, "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(
    case: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, named = REFUSED[case]
    if dropped := settings.get("drop"):
        add = gguf.GGUFWriter.add_tensor
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_tensor",
            lambda self, name, *rest, **named: None if name == dropped else add(self, name, *rest, **named),
        )
        settings = {}
    write_gguf(tmp_path / "m.gguf", random_transformer(), **settings)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(tmp_path / "m.gguf"))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, random_transformer())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        load_checkpoint(str(path))
    assert not (cache / "dequantised").exists()


def test_something_else_entirely(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(CheckpointError, match="no GGUF file"):
        load_checkpoint(str(tmp_path / "m.gguf"))
