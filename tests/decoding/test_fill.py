"""Holes in a text: what follows is seen, stays, and the length is exact."""

from dataclasses import replace

import pytest
import torch

from random_denoisers import letter_tokenizer, random_denoiser
from unmask.decoding.constraint import Constraint
from unmask.decoding.generate import generate, stream
from unmask.decoding.generation import Snapshot
from unmask.decoding.mode import MODES
from unmask.decoding.options import Options
from unmask.decoding.rules import LeftToRight, Threshold, TopK
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.engine.engine import Engine
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser

TOKENIZER, BEFORE, AFTER = letter_tokenizer(), [5, 9, 3, 14], (7, 8, 20)


def masked(*, full_attention: bool = False, logit_shift: bool = True, predicts_next: bool = True) -> Denoiser:
    denoiser = random_denoiser(logit_shift=logit_shift)
    return replace(
        denoiser,
        process=Masked(denoiser.vocab_size, 32, Linear()),
        full_attention=full_attention,
        predicts_next=predicts_next and not full_attention,
    )


@pytest.mark.parametrize("rule", [None, TopK(1), Threshold(0.0), LeftToRight(2)])
@pytest.mark.parametrize("kind", ["shift", "no shift", "no next tokens", "full attention"])
def test_a_hole_has_its_length_and_sees_what_follows(kind: str, rule: TopK | None) -> None:
    denoiser = masked(
        full_attention=kind == "full attention",
        logit_shift=kind == "shift",
        predicts_next=kind in ("shift", "no shift"),
    )
    options = Options("diffusion", max_tokens=5, rule=rule, suffix_ids=AFTER)
    *snapshots, done = stream(denoiser, TOKENIZER, BEFORE, options)
    assert not isinstance(done, Snapshot)
    assert (done.num_tokens, done.finish_reason) == (5, "length")
    assert all(len(event.canvas) in (0, 5) for event in snapshots if isinstance(event, Snapshot))
    others = [
        generate(denoiser, TOKENIZER, BEFORE, replace(options, suffix_ids=(token, *AFTER[1:]))).token_ids
        for token in range(2, 20)
    ]
    assert len({done.token_ids, *others}) > 1


@pytest.mark.parametrize("logit_shift", [True, False])
def test_the_first_forward_is_the_canvas_with_its_suffix(logit_shift: bool) -> None:
    denoiser = masked(logit_shift=logit_shift)
    options = Options("diffusion", max_tokens=4, rule=Threshold(0.0), suffix_ids=AFTER)
    done = generate(denoiser, TOKENIZER, BEFORE, options)
    canvas = torch.tensor([32] * 4 + list(AFTER))
    logits = denoiser.draft(BEFORE, canvas, 0, denoiser.new_cache(8)).logits[:4]
    assert done.token_ids == tuple(logits.argmax(-1).tolist())
    assert done.num_decode_forwards == 1


def test_refusals() -> None:
    denoiser = masked()
    for mode in MODES:
        if mode != "diffusion":
            with pytest.raises(UsageError, match="only mode 'diffusion' sees what comes after"):
                Options(mode, suffix_ids=(1,))
    for changes in ({"block_length": 8}, {"presence_penalty": 1.0}, {"constraint": Constraint("regex", "a")}):
        with pytest.raises(UsageError, match="a hole is"):
            Options("diffusion", suffix_ids=(1,), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="outside the vocabulary"):
        generate(denoiser, TOKENIZER, BEFORE, Options("diffusion", suffix_ids=(99,)))
    with pytest.raises(UsageError, match="text, hole and suffix have 130 tokens"):
        generate(denoiser, TOKENIZER, BEFORE, Options("diffusion", max_tokens=125, suffix_ids=(1,)))
    with pytest.raises(UsageError, match="none is a hole"):
        Engine(denoiser, TOKENIZER, num_pages=9).add(
            BEFORE, Options("diffusion", max_tokens=4, suffix_ids=(1,))
        )
