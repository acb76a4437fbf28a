"""How many tokens a forward could decide at best, and how many each way to decode does.

What the numbers mean, and where the oracles come from: `unmask.evaluation.oracle`, docs/measuring.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.agreement import measure_agreement
from unmask.evaluation.average import Average, average
from unmask.evaluation.fingerprint import described
from unmask.evaluation.ledger import Ledger, Observer
from unmask.evaluation.oracle import OracleCounts
from unmask.evaluation.prompts import Prompt, first_prompts, prompts_digest
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.serial_text import Block, SerialText, require_canvas, write_serially
from unmask.evaluation.together import Together, in_turn
from unmask.evaluation.ways import SERIAL_RULE, Way, Writing, require_room, write
from unmask.training.run_folder import RunFolder

REPORT_FILE = "speed-of-light.json"
PROMPTS_FILE = "prompts.jsonl"

DEFAULT_RULES = ("threshold:0.9", "factor:1", "klass", "entropy-bound:0.1", "margin:2", "spaced")


@dataclass(frozen=True)
class SpeedOfLightConfig:
    """All that decides a measurement but the model; UsageError for what is out of range.

    `num_prompts`: of each kind. `rules`: of mode diffusion, measured beside the oracles; speculation always is, where
    the model has it. `max_canvases`: of one block, for the search for the fewest forwards.
    """

    num_prompts: int = 3
    max_tokens: int = 64
    block_lengths: tuple[int, ...] = (4, 8, 16, 32)
    rules: tuple[str, ...] = DEFAULT_RULES
    max_canvases: int = 200

    def __post_init__(self) -> None:
        first_prompts(self.num_prompts)
        require_room(self.max_tokens, self.block_lengths)
        if self.max_canvases < 1:
            raise UsageError(f"max_canvases={self.max_canvases} must be at least 1")
        self.ways(1, speculates=False)

    def ways(self, block_length: int, *, speculates: bool) -> tuple[Way, ...]:
        """Return what is measured beside the oracles."""
        rules = (Way("diffusion", rule=rule, block_length=block_length) for rule in self.rules)
        return (*rules, *([Way("speculative", block_length=block_length)] if speculates else []))


@dataclass(frozen=True)
class Measured:
    """One prompt at one block length: the serial text with its oracles, and the text of every way by its name."""

    number: int
    kind: str
    block_length: int
    serial: SerialText
    writings: Mapping[str, Writing]


@dataclass(frozen=True)
class OracleSpeed:
    """What an oracle, or serial decoding, takes; the samples are prompts.

    `tokens_per_forward`: all tokens over all decode forwards, commits too, as `Generation` counts them.
    `tokens_per_denoise`: of whole canvases, their tokens over the forwards that filled them; this is how the
    published figures count.
    """

    tokens_per_forward: Average
    tokens_per_denoise: Average | None


@dataclass(frozen=True)
class WaySpeed:
    """What a way to decode takes. `as_serial`: the share of its tokens that are those of the serial text."""

    tokens_per_forward: Average | None
    as_serial: Average | None
    num_equal: int


@dataclass(frozen=True)
class Speeds:
    """All measurements at one block length, on some prompts.

    `num_left`: blocks on which greedy acceptance leaves the way to the target; it is charged their serial forwards.
    `num_unproven`: blocks on which fewer forwards than the fewest found are not ruled out.
    """

    num_prompts: int
    num_tokens: int
    num_blocks: int
    num_left: int
    num_unproven: int
    oracles: Mapping[str, OracleSpeed]
    ways: Mapping[str, WaySpeed]

    @classmethod
    def of(cls, records: Sequence[Measured]) -> "Speeds":
        """Sum up one or more records."""
        texts = [record.serial for record in records]
        blocks = [block.counts for text in texts for block in text.blocks]
        return cls(
            num_prompts=len(records),
            num_tokens=sum(len(text.token_ids) for text in texts),
            num_blocks=len(blocks),
            num_left=sum(counts.greedy is None for counts in blocks),
            num_unproven=sum(not counts.is_proven for counts in blocks),
            oracles={
                name: speed
                for name, forwards in ORACLES.items()
                if (speed := _oracle_speed(records, forwards)) is not None
            },
            ways={name: _way_speed(records, name) for name in records[0].writings},
        )


def _greedy(counts: OracleCounts) -> int:
    return counts.serial if counts.greedy is None else counts.greedy


ORACLES: Mapping[str, Callable[[OracleCounts], int]] = {
    "serial": lambda counts: counts.serial,
    "greedy oracle": _greedy,
    "compaction": lambda counts: counts.compaction,
    "fewest": lambda counts: counts.fewest,
}
"""Forwards of a block, by the name that tables use; the last one is the speed of light."""


def _oracle_speed(records: Sequence[Measured], forwards: Callable[[OracleCounts], int]) -> OracleSpeed | None:
    """Average over the prompts that took a forward; None where none did."""
    texts = [record.serial for record in records]
    per_forward = average(
        [len(text.token_ids) for text in texts],
        [text.num_commits + sum(forwards(block.counts) for block in text.blocks) for text in texts],
    )
    whole = [_whole(record) for record in records]
    per_denoise = average(
        [sum(block.num_tokens for block in blocks) for blocks in whole],
        [sum(forwards(block.counts) for block in blocks) for blocks in whole],
    )
    return None if per_forward is None else OracleSpeed(per_forward, per_denoise)


def _whole(record: Measured) -> list[Block]:
    return [block for block in record.serial.blocks if block.num_tokens == record.block_length]


def _way_speed(records: Sequence[Measured], name: str) -> WaySpeed:
    writings = [record.writings[name] for record in records]
    texts = [writing.token_ids for writing in writings]
    truths = [record.serial.token_ids for record in records]
    agreement = measure_agreement(texts, truths)
    return WaySpeed(
        average([len(text) for text in texts], [writing.num_decode_forwards for writing in writings]),
        None if agreement is None else agreement.overall,
        sum(one == other for one, other in zip(texts, truths, strict=True)),
    )


@dataclass(frozen=True)
class BlockSpeeds:
    """One block length: overall, and by kind of prompt."""

    block_length: int
    overall: Speeds
    kinds: Mapping[str, Speeds]


@dataclass(frozen=True)
class SpeedOfLight:
    """The report. `model`: its name, what its card decides, and the SHA-256 of the prompts as it reads them."""

    config: SpeedOfLightConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    blocks: tuple[BlockSpeeds, ...]


def measure_speed_of_light(
    model: LanguageModel,
    config: SpeedOfLightConfig,
    folder: Path,
    together: Together = in_turn,
    observe: Observer = lambda progress: None,
) -> SpeedOfLight:
    """Measure oracles and rules on the first prompts of every kind, and write `REPORT_FILE` into the folder.

    Every prompt is written down as soon as it is done, so a run that was cut off goes on, and more prompts add to
    fewer. Raise UsageError for a model without a canvas, and for a folder that holds other settings.
    """
    require_canvas(model)
    place = RunFolder(folder, "speed-of-light measurement")
    measured_model = {**described(model), "prompts": prompts_digest(model)}
    settings = {**asdict(config), "model": measured_model}
    del settings["num_prompts"]
    place.claim_settings(settings)
    jobs = [
        (prompt, length) for prompt in first_prompts(config.num_prompts) for length in config.block_lengths
    ]
    records = Ledger(place, PROMPTS_FILE, Measured).fill(
        jobs, lambda job: _measure(model, config, *job, together), "prompts and blocks", observe
    )
    report = SpeedOfLight(
        config,
        provenance_of(model),
        measured_model,
        tuple(_summary(length, records) for length in config.block_lengths),
    )
    place.write_json(REPORT_FILE, asdict(report))
    return report


def _measure(
    model: LanguageModel, config: SpeedOfLightConfig, prompt: Prompt, block_length: int, together: Together
) -> Measured:
    prompt_ids = model.encode(prompt.text)
    serial = Way("diffusion", rule=SERIAL_RULE, block_length=block_length)
    options: Options = model.resolve(serial.options(max_tokens=config.max_tokens))
    text = write_serially(model, prompt_ids, options, max_canvases=config.max_canvases)
    ways = config.ways(block_length, speculates=model.denoiser.predicts_next)
    written = write(model, prompt_ids, ways, max_tokens=config.max_tokens, together=together)
    writings = {way.name: writing for way, writing in zip(ways, written, strict=True)}
    return Measured(prompt.number, prompt.kind, block_length, text, writings)


def _summary(block_length: int, records: Sequence[Measured]) -> BlockSpeeds:
    own = [record for record in records if record.block_length == block_length]
    kinds = dict.fromkeys(record.kind for record in own)
    return BlockSpeeds(
        block_length,
        Speeds.of(own),
        {kind: Speeds.of([record for record in own if record.kind == kind]) for kind in kinds},
    )
