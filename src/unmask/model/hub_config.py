"""A hub checkpoint's config.json, read into our terms; what we do not implement is refused by name."""

from collections.abc import Mapping
from typing import Any

from unmask.config import RopeConfig, RopeScaling, TransformerConfig
from unmask.errors import CheckpointError

_SCALINGS: Mapping[str, RopeScaling] = {
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
}
_HUB_NAMES = {ours: theirs for theirs, ours in _SCALINGS.items()}
_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
_ROPE_KEYS_OF_ALL = (
    "rope_type",
    "type",
    "rope_theta",
    "original_max_position_embeddings",
    "max_position_embeddings",
)


class HubConfig:
    """The keys of one config.json with a family's defaults beneath, since transformers leaves defaults out."""

    def __init__(self, stored: Mapping[str, Any], defaults: Mapping[str, Any], *, origin: str) -> None:
        self.values: dict[str, Any] = {**defaults, **stored}
        self.default_rope: Mapping[str, Any] = defaults.get("rope_parameters", {})
        self.origin = origin

    def refuse(self, what: str) -> CheckpointError:
        """Return the error that names what we do not implement."""
        return CheckpointError(f"{self.origin}: {what} is not supported")

    def integer(self, key: str) -> int:
        """Return a whole number that must be there."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.origin}: {key} must be a whole number, not {value!r}")
        return value

    def number(self, key: str) -> float:
        """Return a number that must be there."""
        return _number(self.values.get(key), key, self.origin)

    def flag(self, key: str) -> bool:
        """Return a truth value, false when absent."""
        return bool(self.values.get(key))

    def check(self, num_layers: int, max_positions: int) -> None:
        """Raise CheckpointError for anything outside what the backbone computes."""
        if (activation := self.values.get("hidden_act", "silu")) != "silu":
            raise self.refuse(f"hidden_act {activation!r}")
        if self.flag("rope_interleaved"):
            raise self.refuse("rope_interleaved")
        if method := (self.values.get("quantization_config") or {}).get("quant_method"):
            raise self.refuse(f"quantization_config with quant_method {method!r}")
        if other := set(self.values.get("layer_types") or ()) - {"full_attention"}:
            raise self.refuse(f"layer_types with {min(other)!r}")
        window = self.values.get("sliding_window") if self.values.get("use_sliding_window", True) else None
        first = self.values.get("max_window_layers", 0)
        # A window no narrower than the context hides nothing.
        if window is not None and window < max_positions and first < num_layers:
            raise self.refuse(f"sliding_window={window} (layers {first} to {num_layers - 1})")

    def rope(self, max_positions: int, *, query_scale: bool = False) -> RopeConfig:
        """Return the rotary embedding, from transformers 5's `rope_parameters` or the older two keys.

        `query_scale`: the family multiplies queries by the Llama-4 temperature, whose slope lies among these keys.
        """
        stored = self.values.get("rope_scaling") or self.values.get("rope_parameters") or self.default_rope
        kind = stored.get("rope_type") or stored.get("type") or "default"
        if kind not in _SCALINGS:
            raise self.refuse(f"rope_type {kind!r}")
        if (
            partial := stored.get("partial_rotary_factor", self.values.get("partial_rotary_factor", 1))
        ) not in (1, None):
            raise self.refuse(f"partial_rotary_factor {partial}")
        known = {*_ROPE_KEYS_OF_ALL, *_ROPE_KEYS[kind], "partial_rotary_factor"}
        known |= {"llama_4_scaling_beta"} if query_scale else set()
        if unknown := sorted(key for key, value in stored.items() if key not in known and value is not None):
            raise self.refuse(f"{unknown[0]}={stored[unknown[0]]!r} with rope_type {kind!r}")

        def value(key: str, default: float) -> float:
            # transformers reads 0 and null as "not given" here
            return _number(stored.get(key) or default, f"rope {key}", self.origin)

        original = self.values.get("original_max_position_embeddings") or stored.get(
            "original_max_position_embeddings"
        )
        original = int(original or max_positions)
        factor = value("factor", max_positions / original)
        if kind != "default" and factor < 1:
            raise self.refuse(f"rope factor {factor} below 1, which would shorten the context,")
        attention_factor = stored.get("attention_factor")
        return RopeConfig(
            theta=value("rope_theta", self.values.get("rope_theta") or 10_000.0),
            scaling=_SCALINGS[kind],
            factor=factor if kind != "default" else 1.0,
            original_max_positions=original if kind in ("llama3", "yarn") or query_scale else 0,
            low_freq_factor=value("low_freq_factor", 1.0),
            high_freq_factor=value("high_freq_factor", 4.0),
            beta_fast=value("beta_fast", 32.0),
            beta_slow=value("beta_slow", 1.0),
            attention_factor=None
            if attention_factor is None
            else _number(attention_factor, "attention_factor", self.origin),
            mscale=value("mscale", 0.0),
            mscale_all_dim=value("mscale_all_dim", 0.0),
            truncate=bool(stored.get("truncate", True)),
            query_scale_beta=value("llama_4_scaling_beta", 0.0),
        )


def describe(config: TransformerConfig, model_type: str) -> dict[str, Any]:
    """Return the config.json of a model: what `Family.read_config` reads, every key written out."""
    rope = config.rope
    described: dict[str, Any] = {"rope_type": _HUB_NAMES[rope.scaling], "rope_theta": rope.theta}
    fields = {key: vars(rope)[key] for key in _ROPE_KEYS[described["rope_type"]]}
    described |= {key: value for key, value in fields.items() if value is not None}
    if rope.original_max_positions:
        described["original_max_position_embeddings"] = rope.original_max_positions
    if rope.query_scale_beta:
        described["llama_4_scaling_beta"] = rope.query_scale_beta
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_parameters": described,
    }


def _number(value: object, name: str, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{origin}: {name} must be a number, not {value!r}")
    return float(value)
