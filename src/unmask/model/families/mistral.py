"""Mistral, and Ministral 3 (YaRN, query temperature), alone or as the text half of the `mistral3` image models."""

from unmask.model.family import BARE, PLAIN, Family, Placement

_PLACEMENTS = (
    PLAIN,
    Placement("language_model.model.", "language_model.lm_head"),
    Placement("model.language_model.", "lm_head"),
    BARE,
)
_IGNORED = (
    r"\.rotary_emb\.inv_freq$|^(model\.)?(vision_tower|multi_modal_projector|vision_encoder|patch_merger)\."
)

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    defaults={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
    },
    wrapped_in=("mistral3",),
    placements=_PLACEMENTS,
    ignored=_IGNORED,
)

MINISTRAL3 = Family(
    name="ministral3",
    model_types=("ministral3",),
    defaults={
        "vocab_size": 131_072,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16_384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    query_scale=True,
    wrapped_in=("mistral3",),
    placements=_PLACEMENTS,
    ignored=_IGNORED,
    gguf={"mistral3": "ministral3"},
    gguf_turned=True,
)
