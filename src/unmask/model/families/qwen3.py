"""Qwen3: Llama with RMS norms on each head's queries and keys."""

from unmask.model.family import Family

QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    defaults={
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    traits=lambda config: {
        "qk_norm": True,
        "qkv_bias": config.flag("attention_bias"),
        "output_bias": config.flag("attention_bias"),
    },
    gguf={"qwen3": "qwen3"},
)
