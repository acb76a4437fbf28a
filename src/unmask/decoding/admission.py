"""What a model can be asked: the checks of one request before its first forward."""

from collections.abc import Sequence

from unmask.decoding.gaussian_samplers import GAUSSIAN_SAMPLERS, GaussianAncestral, GaussianSampler
from unmask.decoding.guidance import Guidance
from unmask.decoding.options import DEFAULT_GAUSSIAN_SAMPLER, AnySampler, Options
from unmask.decoding.samplers import Ancestral
from unmask.diffusion.masked import Masked
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser


def admit(denoiser: Denoiser, prompt_ids: Sequence[int], options: Options) -> int:
    """Return how many tokens may be generated: as many as were asked for and the context holds.

    Raises UsageError for a mode the model does not have, and for a prompt or stop tokens that it cannot take.
    """
    config = denoiser.transformer.config
    instead = f"use mode {'ar' if denoiser.predicts_next else 'diffusion'!r}"
    is_continuous = denoiser.vectors is not None
    if is_continuous and options.mode == "diffusion":
        gaussian_sampler(options)
    elif options.mode != "ar" and not (
        is_continuous or denoiser.mask_token_id is not None or denoiser.process is not None
    ):
        raise UsageError(
            f"mode {options.mode!r}: this model has no mask token",
            "use mode 'ar', or convert the model first",
        )
    elif isinstance(options.sampler, GaussianSampler):
        raise UsageError(
            f"sampler {options.sampler} needs Gaussian noise, this model's noise is on tokens",
            "choose another, or leave it out",
        )
    elif options.sampler is not None and denoiser.process is None:
        raise UsageError(f"sampler {options.sampler}: the noise of this model is not known", "give a rule")
    if options.mode in ("speculative", "auto") and denoiser.mask_token_id is None:
        raise UsageError(f"mode {options.mode!r}: drafts are masks, and this model has none", instead)
    if options.mode != "diffusion" and not denoiser.predicts_next:
        raise UsageError(f"mode {options.mode!r}: this model was not trained to predict next tokens", instead)
    if options.guidance is not None:
        _admit_guidance(denoiser, options.guidance)
    if not prompt_ids:
        raise UsageError("the prompt has no tokens", "give a text")
    strange = [token for token in prompt_ids if not 0 <= token < config.vocab_size]
    if strange:
        raise UsageError(f"prompt token {strange[0]} is outside the vocabulary of {config.vocab_size}")
    if len(prompt_ids) >= config.max_positions:
        raise UsageError(
            f"the prompt has {len(prompt_ids)} tokens, the model's context only {config.max_positions}",
            f"shorten it to at most {config.max_positions - 1}",
        )
    biased = [token for token, _ in options.logit_bias if token >= denoiser.vocab_size]
    if biased:
        raise UsageError(f"logit_bias: {biased[0]} is outside the vocabulary of {denoiser.vocab_size}")
    if options.penalises and (denoiser.full_attention or (denoiser.mask_token_id is None and options.rule)):
        raise UsageError(
            "presence_penalty, frequency_penalty: this model's canvases are not filled token by token",
            "leave them out",
        )
    foreign = [token for token in options.suffix_ids if token >= denoiser.vocab_size]
    if foreign:
        raise UsageError(f"suffix_ids: {foreign[0]} is outside the vocabulary of {denoiser.vocab_size}")
    whole = len(prompt_ids) + options.max_tokens + len(options.suffix_ids)
    if options.suffix_ids and whole > config.max_positions:
        raise UsageError(
            f"text, hole and suffix have {whole} tokens, the model's context only {config.max_positions}",
            "shorten one of them",
        )
    beyond = [token for token in options.stop_token_ids or () if token >= config.vocab_size]
    if beyond:
        raise UsageError(f"stop_token_ids: {beyond[0]} is outside the vocabulary of {config.vocab_size}")
    return min(options.max_tokens, config.max_positions - len(prompt_ids))


def _admit_guidance(denoiser: Denoiser, guidance: Guidance) -> None:
    if not denoiser.full_attention:
        raise UsageError(
            f"guidance {guidance.weight:g}: this model reads its prompt from left to right and cannot see it as noise",
            "leave it out, or choose a model of full attention",
        )
    ports = denoiser.conditioning
    if guidance.by == "self" and (ports is None or ports.belief is None):
        raise UsageError(
            f"guidance self:{guidance.weight:g}: this model was trained without self-conditioning",
            f"use {guidance.weight:g}, which guides by the prompt, or train with self_conditioning = true",
        )


def gaussian_sampler(options: Options) -> GaussianSampler:
    """Return what fills the canvases of a continuous model; UsageError for a rule, and for a sampler of tokens."""
    if options.rule is not None:
        raise UsageError(
            f"rule {options.rule} needs masks, this model's noise is Gaussian",
            "leave it out, or give a sampler",
        )
    match options.sampler:
        case None:
            return DEFAULT_GAUSSIAN_SAMPLER
        case Ancestral():  # one name for one idea
            return GaussianAncestral()
        case GaussianSampler():
            return options.sampler
    raise UsageError(
        f"sampler {options.sampler} needs noise on tokens, this model's noise is Gaussian",
        f"choose from {', '.join(GAUSSIAN_SAMPLERS.names())}",
    )


def default_sampler(denoiser: Denoiser) -> AnySampler | None:
    """Return what fills canvases of a model that no rule can decode, for its tokens are never simply open."""
    if denoiser.vectors is not None:
        return DEFAULT_GAUSSIAN_SAMPLER
    return None if denoiser.process is None or isinstance(denoiser.process, Masked) else Ancestral()
