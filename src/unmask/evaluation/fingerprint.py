"""A name for the numbers in a model, whatever files they came from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from unmask.decoding.language_model import LanguageModel
from unmask.model.catalogue import LocalSource


def described(model: LanguageModel) -> dict[str, object]:
    """Return what reports call a model, what its card decides, and what folders of measurements know it by."""
    card = model.checkpoint.card
    return {
        "name": Path(card.name).name if isinstance(card.source, LocalSource) else card.name,
        "adapter": adapter_name(model),
        "fingerprint": fingerprint(model),
        "block_length": card.block_length,
        "logit_shift": card.logit_shift,
        "mask_token_id": card.mask_token_id,
        "process": card.process,
        "schedule": card.schedule,
        "stop_token_ids": card.stop_token_ids,
    }


def adapter_name(model: LanguageModel) -> str | None:
    """Return what a model's adapter is called, wherever it lies; None without one."""
    adapter = model.checkpoint.card.adapter
    return None if adapter is None else Path(adapter).name


def fingerprint(model: LanguageModel) -> str:
    """Return a hash of all weights that decide what a model writes, and of what they are rounded to."""
    parts = model.checkpoint
    modules = (parts.transformer, parts.adapter, parts.conditioning, parts.vectors)
    return _digest(model.quantize, modules)


def backbone_fingerprint(model: LanguageModel) -> str:
    """Return a hash of the weights that predict next tokens, which no adapter changes."""
    return _digest(model.quantize, [model.checkpoint.transformer])


def _digest(quantize: str | None, modules: Iterable[nn.Module | None]) -> str:
    digest = hashlib.sha256((quantize or "").encode())
    for module in modules:
        for name, tensor in sorted(({} if module is None else module.state_dict()).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
