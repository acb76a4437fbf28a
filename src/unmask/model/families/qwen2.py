"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from unmask.model.family import Family

QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    defaults={
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    traits=lambda config: {"qkv_bias": True},
    gguf={"qwen2": "qwen2"},
)
