"""Llama 1 to 3, and what copies its architecture: SmolLM, TinyLlama, Yi."""

from unmask.model.family import Family

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    defaults={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    traits=lambda config: {
        "qkv_bias": config.flag("attention_bias"),
        "output_bias": config.flag("attention_bias"),
        "mlp_bias": config.flag("mlp_bias"),
    },
    gguf={"llama": "llama"},
    gguf_turned=True,
)
