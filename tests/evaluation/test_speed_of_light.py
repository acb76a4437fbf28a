"""The speed of light: its oracles are the optimum where that can be enumerated, and its texts are the decoder's."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import Command
from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.decoding.rules import TopK
from unmask.diffusion.markov import MarkovChain
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.engine.side_by_side import side_by_side
from unmask.errors import UsageError
from unmask.evaluation.oracle import CanvasOracle, State
from unmask.evaluation.prompts import all_prompts
from unmask.evaluation.serial_text import write_serially
from unmask.evaluation.speed_of_light import SpeedOfLightConfig, measure_speed_of_light

Places = tuple[int, ...]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


def chain_oracle(seed: int, length: int, *, max_canvases: int = 10**6) -> CanvasOracle:
    """Return the oracles of a canvas behind one token of a random Markov chain, whose denoiser is exact."""
    generator = torch.Generator().manual_seed(seed)
    chain = MarkovChain.random(3 + seed % 4, generator, sharpness=1 + seed % 5 / 2)
    denoiser = chain.denoiser(Masked(chain.vocab_size, chain.vocab_size, Linear()))

    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        given = torch.tensor([[seed % 3]])
        return denoiser(torch.cat([given, tokens], dim=1), time, belief)[:, 1:]

    return CanvasOracle(denoise, chain.vocab_size, length, max_canvases=max_canvases)


def optimum(oracle: CanvasOracle, choices: Callable[[Places], Iterable[Places]]) -> float:
    """Return the fewest forwards to the target by dynamic programming over all canvases that the choices lead to."""
    needed: dict[State, float] = {oracle.target: 0}

    def solve(state: State) -> float:
        if state not in needed:
            ways = (committed(oracle, state, places) for places in choices(oracle.matches(state)))
            needed[state] = 1 + min(map(solve, ways), default=float("inf"))
        return needed[state]

    return solve(oracle.blank)


def committed(oracle: CanvasOracle, state: State, places: Places) -> State:
    return tuple(oracle.target[i] if i in places else token for i, token in enumerate(state))


def every_subset(places: Places) -> Iterable[Places]:
    return (some for size in range(1, len(places) + 1) for some in combinations(places, size))


@pytest.mark.parametrize("seed", range(40))
def test_fewest_forwards_are_the_optimum_on_a_markov_chain(seed: int) -> None:
    oracle = chain_oracle(seed, 4 + seed % 4)
    counts = oracle.counts()
    assert counts.is_proven
    assert counts.serial == oracle.length
    assert counts.fewest == optimum(oracle, every_subset)
    assert counts.fewest <= counts.compaction <= counts.serial
    assert counts.greedy is None or counts.greedy >= counts.fewest


def test_greedy_acceptance_may_leave_the_way_and_compaction_may_not() -> None:
    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        # Blank: the first two match, of which the second misleads what follows unless the third is decided first.
        first, second, third = tokens[0].tolist()
        logits = torch.tensor([[[9.0, 0.0], [5.0, 0.0], [0.0, 1.0]]])
        if second != 2 and third == 2:
            logits[0, 2] = torch.tensor([0.0, 7.0])
        elif first != 2:
            logits[0, 2] = torch.tensor([6.0, 0.0])
        return logits

    oracle = CanvasOracle(denoise, 2, 3)
    assert oracle.target == (0, 0, 0)
    counts = oracle.counts()
    assert (counts.serial, counts.greedy, counts.compaction, counts.fewest) == (3, None, 2, 2)
    assert counts.is_proven


def test_a_search_that_runs_out_says_so() -> None:
    seed = next(seed for seed in range(40) if chain_oracle(seed, 7).counts().fewest > 2)
    counts = chain_oracle(seed, 7, max_canvases=1).counts()
    assert counts.fewest >= chain_oracle(seed, 7).counts().fewest
    assert not counts.is_proven or counts.fewest == chain_oracle(seed, 7).counts().fewest


@pytest.mark.parametrize("stop", [(), tuple(range(0, 264, 7))], ids=["to the end", "stopped"])
@pytest.mark.parametrize("block_length", [3, 5])
def test_the_serial_text_is_what_the_decoder_writes(
    model: LanguageModel, block_length: int, stop: tuple[int, ...]
) -> None:
    for prompt in ("hello", "what?"):
        prompt_ids = model.encode(prompt)
        options = Options(
            "diffusion", rule=TopK(1), block_length=block_length, max_tokens=17, stop_token_ids=stop
        )
        text = write_serially(model, prompt_ids, options, max_canvases=20)
        truth = generate(model.denoiser, model.tokenizer, prompt_ids, options)
        assert text.token_ids == truth.token_ids
        serial = text.num_commits + sum(block.counts.serial for block in text.blocks)
        assert serial == truth.num_decode_forwards


CONFIG = SpeedOfLightConfig(num_prompts=1, max_tokens=9, block_lengths=(2, 4), rules=("threshold:0.9",))


def test_a_measurement_goes_on_where_it_was(model: LanguageModel, tmp_path: Path) -> None:
    whole = measure_speed_of_light(model, CONFIG, tmp_path / "whole")
    ledger = (tmp_path / "whole" / "prompts.jsonl").read_text()
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "settings.json").write_text((tmp_path / "whole" / "settings.json").read_text())
    (folder / "prompts.jsonl").write_text("".join(ledger.splitlines(keepends=True)[:5]) + '{"cut')
    asked = []
    part = measure_speed_of_light(
        model, CONFIG, folder, together=side_by_side, observe=lambda event: asked.append(event.done)
    )
    assert asked[0] == 5
    speeds_of_both = [[block.overall for block in report.blocks] for report in (whole, part)]
    assert speeds_of_both[0] == speeds_of_both[1]
    speeds = whole.blocks[1].overall
    assert (
        speeds.oracles["serial"].tokens_per_forward.mean <= speeds.oracles["fewest"].tokens_per_forward.mean
    )
    with pytest.raises(UsageError, match="max_tokens"):
        measure_speed_of_light(
            model, SpeedOfLightConfig(max_tokens=20, block_lengths=(2, 4)), tmp_path / "part"
        )


def test_other_prompts_and_cards_are_another_measurement(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SpeedOfLightConfig(num_prompts=1, max_tokens=4, block_lengths=(2,), rules=("threshold:0.9",))
    measure_speed_of_light(model, config, tmp_path / "sol")
    parts = model.checkpoint
    moved = LanguageModel(replace(parts, card=replace(parts.card, adapter="/elsewhere/adapter")))
    measure_speed_of_light(moved, config, tmp_path / "sol")
    shifted = LanguageModel(replace(parts, card=replace(parts.card, stop_token_ids=(1,))))
    with pytest.raises(UsageError, match="stop_token_ids"):
        measure_speed_of_light(shifted, config, tmp_path / "sol")
    changed = tuple(replace(prompt, text=f"{prompt.text}!") for prompt in all_prompts())
    monkeypatch.setattr("unmask.evaluation.prompts.all_prompts", lambda: changed)
    with pytest.raises(UsageError, match="prompts="):
        measure_speed_of_light(model, config, tmp_path / "sol")


def test_the_command(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    arguments = "--prompts 1 --max-tokens 7 --blocks 2,4 --rule top-k:2 --rule random:2".split()
    done = unmask_command("sol", tiny_model, "--out", tmp_path / "sol", *arguments)
    assert done.status == 0, done.err
    assert "fewest" in done.out
    assert (tmp_path / "sol" / "speed-of-light.png").stat().st_size > 1000
    report = json.loads(
        unmask_command("sol", tiny_model, "--out", tmp_path / "sol", *arguments, "--json").out
    )
    ways = report["blocks"][0]["overall"]["ways"]
    assert list(ways) == ["top-k:2, block 2", "random:2, block 2", "speculative, block 2"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--blocks", "4,x"), "--blocks"),
        (("--blocks", "64", "--max-tokens", "9"), "room"),
        (("--rule", "nonsense"), "nonsense"),
        (("--prompts", "41"), "prompts"),
    ],
)
def test_refusals(
    unmask_command: Command, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    done = unmask_command("sol", tiny_model, "--out", tmp_path / "sol", *arguments)
    assert done.status == 2
    assert complaint in done.err
