"""The model families we load: one small file of data each, ours below, others' through entry points."""

from collections.abc import Mapping
from typing import Any

from unmask.errors import CheckpointError
from unmask.model.families.llama import LLAMA
from unmask.model.families.mistral import MINISTRAL3, MISTRAL
from unmask.model.families.qwen2 import QWEN2
from unmask.model.families.qwen3 import QWEN3
from unmask.model.family import Family
from unmask.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "model family",
    group="unmask.families",
    items={family.name: family for family in (LLAMA, QWEN2, QWEN3, MISTRAL, MINISTRAL3)},
)


def family_of(config: Mapping[str, Any], *, origin: str) -> tuple[Family, Mapping[str, Any]]:
    """Return the family of a config.json, and the part of it that describes the text model.

    Raise CheckpointError, naming `origin`, for a model_type no family has.
    """
    families = [FAMILIES.get(name) for name in FAMILIES.names()]
    model_type = config.get("model_type")
    if any(model_type in family.wrapped_in for family in families):
        # What ties the output matrix is said of the whole model, and by default it is tied.
        text = {
            **config.get("text_config", {}),
            "tie_word_embeddings": config.get("tie_word_embeddings", True),
        }
        candidates = [family for family in families if model_type in family.wrapped_in]
        family = next((family for family in candidates if text.get("model_type") in family.model_types), None)
        model_type = f"{model_type} around {text.get('model_type')}"
    else:
        text = dict(config)
        family = next((family for family in families if model_type in family.model_types), None)
    if family is None:
        known = ", ".join(sorted({name for family in families for name in family.model_types}))
        raise CheckpointError(f"{origin}: model_type {model_type!r} is not supported", f"supported: {known}")
    return family, text
