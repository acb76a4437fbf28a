"""A name for the numbers in a model, whatever files they came from."""

import hashlib

import torch

from unmask.decoding.language_model import LanguageModel


def described(model: LanguageModel) -> dict[str, object]:
    """Return what reports call a model, and folders of measurements know it by."""
    card = model.checkpoint.card
    return {"name": card.name, "adapter": card.adapter, "fingerprint": fingerprint(model)}


def fingerprint(model: LanguageModel) -> str:
    """Return a hash of all weights that decide what a model writes, and of what they are rounded to."""
    digest = hashlib.sha256((model.quantize or "").encode())
    parts = model.checkpoint
    for module in (parts.transformer, parts.adapter, parts.conditioning, parts.vectors):
        for name, tensor in sorted(({} if module is None else module.state_dict()).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
