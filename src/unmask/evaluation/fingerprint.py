"""A name for the numbers in a model, whatever files they came from."""

import hashlib

import torch

from unmask.decoding.language_model import LanguageModel


def fingerprint(model: LanguageModel) -> str:
    """Return a hash of all weights that decide what a model writes."""
    digest = hashlib.sha256()
    denoiser = model.denoiser
    for module in (denoiser.transformer, denoiser.adapter, denoiser.conditioning, denoiser.vectors):
        for name, tensor in sorted(({} if module is None else module.state_dict()).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
