"""Every family's logits equal transformers' on random tiny models, read from the files transformers writes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from unmask.errors import CheckpointError
from unmask.layout import causal_layout
from unmask.model.families import FAMILIES, family_of
from unmask.model.weights import read_transformer, write_transformer

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases, one kv head": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    ),
    "llama wide heads": ("llama", {"head_dim": 24}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0}},
    ),
    "llama llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 tied, yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2 yarn, own attention factor": ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen2 yarn, not truncated": (
        "qwen2",
        {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 biases, tied": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral wide window": ("mistral", {"sliding_window": 128, "head_dim": 12}),
    "mistral yarn, mscale": (
        "mistral",
        {"sliding_window": None, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}},
    ),
    "ministral3": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
    ),
    "ministral3 without yarn": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.5,
            },
        },
    ),
}
NUM_TOKENS = 70  # more than four times the original positions of every scaled rope above


@pytest.fixture(autouse=True)
def quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def random_reference(
    model_type: str, settings: dict[str, Any], seed: int = 0
) -> transformers.PreTrainedModel:
    """Return transformers' model with every parameter random, norms and biases too."""
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    return model


def reference_logits(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens[None]).logits[0]


def our_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    transformer, _ = read_transformer(folder, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        return transformer.logits(transformer(tokens, causal_layout(len(tokens))))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (NUM_TOKENS,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    reference = random_reference(*CASES[case])
    reference.save_pretrained(tmp_path)
    expected = reference_logits(reference, tokens)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(our_logits(tmp_path, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_we_write(case: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    reference = random_reference(*CASES[case])
    reference.save_pretrained(tmp_path / "theirs")
    transformer, family = read_transformer(
        tmp_path / "theirs", dtype=torch.float32, device=torch.device("cpu")
    )
    (tmp_path / "ours").mkdir()
    write_transformer(tmp_path / "ours", transformer, family)
    again, _ = read_transformer(tmp_path / "ours", dtype=torch.float32, device=torch.device("cpu"))
    assert again.config == transformer.config
    copied = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert torch.equal(reference_logits(copied, tokens), reference_logits(reference, tokens))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_shards_with_an_index(family: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    reference = random_reference(family, {})
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    torch.testing.assert_close(
        our_logits(tmp_path, tokens), reference_logits(reference, tokens), atol=1e-4, rtol=0
    )


def test_the_older_spelling_of_rope(tokens: torch.Tensor, tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta and rope_scaling, the latter with a `type`."""
    reference = random_reference(
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}}
    )
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(
        our_logits(tmp_path, tokens), reference_logits(reference, tokens), atol=1e-4, rtol=0
    )


def test_keys_left_out_mean_what_transformers_assumes() -> None:
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        model_type = family.model_types[0]
        defaults = transformers.AutoConfig.for_model(model_type)
        window = {"sliding_window": None} if name == "mistral" else {}
        config = family.read_config({"model_type": model_type, **window}, origin="here")
        assert config == family.read_config({**defaults.to_dict(), **window}, origin="here")


def test_half_precision_files_are_widened(tokens: torch.Tensor, tmp_path: Path) -> None:
    reference = random_reference("qwen3", {"head_dim": 8}).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    torch.testing.assert_close(
        our_logits(tmp_path, tokens), reference_logits(reference.float(), tokens), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("text_type", ["ministral3", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_text_half_of_an_image_model(
    text_type: str, tied: bool, tokens: torch.Tensor, tmp_path: Path
) -> None:
    text = {**SIZES, "head_dim": 16, "sliding_window": None, "model_type": text_type}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    reference = transformers.Mistral3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    reference.save_pretrained(tmp_path)
    torch.testing.assert_close(
        our_logits(tmp_path, tokens), reference_logits(reference, tokens), atol=1e-4, rtol=0
    )


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "dynamic rope": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    "long rope": ("qwen2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
    "mistral's default window": ("mistral", {}, "sliding_window=4096"),
    "an active window": (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 64},
        "sliding_window=64",
    ),
    "sliding layers": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "'sliding_attention'",
    ),
    "partial rotation": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "quantised weights": ("llama", {"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
    "a shrinking factor": ("qwen2", {"rope_parameters": {**YARN, "factor": 0.25}}, "factor 0.25"),
    "a foreign rope key": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}},
        "mrope_section",
    ),
    "a query scale": (
        "qwen2",
        {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}},
        "llama_4_scaling_beta",
    ),
    "interleaved rope": ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    "another family": ("gemma3_text", {}, "model_type 'gemma3_text'"),
    "a missing number": ("llama", {"hidden_size": None}, "hidden_size must be a whole number"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, "num_kv_heads=3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(case: str) -> None:
    model_type, settings, named = REFUSED[case]

    def read() -> None:
        family, described = family_of({"model_type": model_type, **settings}, origin="config.json")
        family.read_config(described, origin="config.json")

    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
