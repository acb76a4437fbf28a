"""The models that come along: small, in place, and trained."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unmask
from command_line import Command
from unmask.decoding.language_model import LanguageModel
from unmask.evaluation.canvas_likelihood import gaussian_denoiser
from unmask.evaluation.gaussian_likelihood import gaussian_bound
from unmask.evaluation.likelihood import bound
from unmask.evaluation.written import judged_bits
from unmask.model.catalogue import find_card, shipped_folder

NAMES = ("tiny-ar", "tiny-masked", "tiny-continuous")
SENTENCES = (
    "She was not at all sure that he would come, but she went to the window and looked out over the garden.",
    "The captain stood upon the deck, and there was nothing to be seen of the ship that they had been looking for.",
    "It is the duty of the government to see that the people of the country are treated with justice in all things.",
)


def nats(model: LanguageModel, texts: Tensor) -> Tensor:
    """Return what each row costs after its first token: exactly or by the bound, averaged over much noise."""
    if model.denoiser.predicts_next:
        return judged_bits(model.denoiser, texts)
    scored = torch.arange(texts.shape[1]).expand(texts.shape) > 0
    generator = torch.Generator().manual_seed(0)
    if model.denoiser.vectors is not None:
        denoiser, process = gaussian_denoiser(model.denoiser)
        return gaussian_bound(denoiser, texts, process, generator, num_samples=64, scored=scored).mean
    whole, noise = model.denoiser.whole, model.denoiser.process
    return bound(whole, texts, noise, generator, num_samples=64, scored=scored).mean


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_needs_no_download(name: str, tmp_path: Path) -> None:
    card = find_card(name)
    assert card is not None
    assert card.licence == "Apache-2.0"
    assert sum(path.stat().st_size for path in (shipped_folder() / name).iterdir()) < 10e6
    model = unmask.load(name, cache_dir=tmp_path, offline=True)
    assert model.checkpoint.card.name == name
    assert not any(tmp_path.iterdir())


def test_the_twins_are_of_one_size() -> None:
    sizes = [
        sum(p.numel() for p in unmask.load(name).checkpoint.transformer.layers.parameters()) for name in NAMES
    ]
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_english_is_likelier_than_the_same_tokens_in_another_order(name: str) -> None:
    model = unmask.load(name)
    ids = [model.tokenizer.encode(text) for text in SENTENCES]
    length = min(map(len, ids))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(1))
    texts = torch.tensor([row[:length] for row in ids])
    start = torch.full((len(texts), 1), model.tokenizer.eos_id)
    told, shuffled = (nats(model, torch.cat([start, rows], 1)).sum() for rows in (texts, texts[:, order]))
    assert told < 0.8 * shuffled


def test_steps_are_forwards_and_python_writes_what_the_command_writes(unmask_command: Command) -> None:
    words = ("generate", "tiny-continuous", "The whale", "--steps", "16", "--temperature", "0.8")
    done = unmask_command(*words, "--max-tokens", "24", "--ignore-stop-tokens", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert (found["num_tokens"], found["num_forwards"]) == (24, 16)
    assert len(set(found["token_ids"])) > 5
    options = {"num_steps": 16, "temperature": 0.8, "max_tokens": 24, "stop_token_ids": ()}
    again = unmask.load("tiny-continuous").generate("The whale", mode="diffusion", **options)
    assert list(again.token_ids) == found["token_ids"]


def test_a_text_sharpens_on_the_screen(unmask_command: Command) -> None:
    words = ("generate", "tiny-continuous", "The whale", "--steps", "5", "--max-tokens", "8", "--watch")
    shown = unmask_command(*words)
    assert shown.status == 0, shown.err
    assert all(f"{number} denoise" in shown.out for number in range(1, 6))


@pytest.mark.parametrize("name", ["tiny-masked", "tiny-continuous"])
def test_a_hole_is_filled_the_same_by_command_and_by_python(
    name: str, unmask_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("He did not<hole>what to say.", encoding="utf-8")
    options = ("--length", "5", "--steps", "8", "--temperature", "0.7", "--json")
    done = unmask_command("fill", tmp_path / "text", "--model", name, *options)
    assert done.status == 0, done.err
    filled = unmask.load(name).fill("He did not", "what to say.", length=5, num_steps=8, temperature=0.7)
    assert json.loads(done.out)["token_ids"] == list(filled.token_ids)
    assert len(filled.token_ids) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "0"), "num_steps=0"),
        (("--steps", "two"), "--steps"),
        (("--rule", "threshold:0.9"), "rule"),
        (("--sampler", "remdm-cap:0.1"), "sampler"),
        (("--mode", "speculative"), "speculative"),
        (("--regex", "a*"), "regex"),
    ],
)
def test_what_a_continuous_model_cannot_do_is_refused_by_name(
    words: tuple[str, ...], message: str, unmask_command: Command
) -> None:
    refused = unmask_command("generate", "tiny-continuous", "The whale", "--max-tokens", "4", *words)
    assert refused.status == 2
    assert message in refused.err
    assert not refused.out


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("no mark here", ("--length", "3"), "<hole>"),
        ("a<hole>b", ("--length", "0"), "length=0"),
        ("a<hole>b", ("--length", "3", "--steps", "0"), "num_steps=0"),
        ("a<hole>b", ("--length", "3", "--rule", "threshold:0.9"), "rule"),
    ],
)
def test_a_hole_that_is_none_is_refused_by_name(
    text: str, words: tuple[str, ...], message: str, unmask_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(text, encoding="utf-8")
    refused = unmask_command("fill", tmp_path / "text", "--model", "tiny-continuous", *words)
    assert refused.status == 2
    assert message in refused.err
