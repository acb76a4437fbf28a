"""Puzzles that `reasoning-gym` makes from fixed seeds; their answers are checked here."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from unmask.errors import UsageError
from unmask.evaluation.scoring import GenerationRequest
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, WrittenAnswer
from unmask.evaluation.tasks.task import Task

NUM_ITEMS = 500
SEED = 20_240_501

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def solves_sudoku(text: str, *, puzzle: Sequence[Sequence[int]]) -> bool:
    """Say whether a text is a grid that completes the puzzle, 0 where that is open: one row a line, spaces between."""
    size, box = len(puzzle), round(len(puzzle) ** 0.5)
    rows = [re.findall(r"\d+", line) for line in text.strip().split("\n")]
    if len(rows) != size or any(len(row) != size for row in rows):
        return False
    grid = [[int(digit) for digit in row] for row in rows]
    boxes = [
        [grid[top + i][left + j] for i in range(box) for j in range(box)]
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    groups = [*grid, *(list(column) for column in zip(*grid, strict=True)), *boxes]
    keeps_clues = all(
        not clue or clue == digit
        for clues, digits in zip(puzzle, grid, strict=True)
        for clue, digit in zip(clues, digits, strict=True)
    )
    return keeps_clues and all(sorted(group) == list(range(1, size + 1)) for group in groups)


def reaches_target(text: str, *, numbers: Sequence[int], target: int) -> bool:
    """Say whether a text is a sum, product and so on of exactly these numbers that makes the target.

    The text is parsed and never evaluated: a model's answer is nothing to hand to an interpreter.
    """
    used: list[int] = []

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                used.append(number)
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
            case _:
                raise ValueError("not arithmetic")

    try:
        result = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return False
    return Counter(used) == Counter(numbers) and abs(result - target) < 1e-6


def _grid(metadata: dict[str, Any]) -> Callable[[str], bool]:
    return partial(solves_sudoku, puzzle=metadata["puzzle"])


def _sum(metadata: dict[str, Any]) -> Callable[[str], bool]:
    return partial(reaches_target, numbers=metadata["numbers"], target=metadata["target"])


def _puzzles(
    name: str, checker: Callable[[dict[str, Any]], Callable[[str], bool]], stop: str, max_tokens: int
) -> Callable[[TaskData], Iterable[Item]]:
    def load(data: TaskData) -> Iterator[Item]:
        try:
            import reasoning_gym
        except ImportError as error:
            raise UsageError(
                f"task {name.replace('_', '-')!r} needs the package reasoning-gym, which is not installed",
                "pip install 'unmask[eval]'",
            ) from error
        for index, entry in enumerate(reasoning_gym.create_dataset(name, size=NUM_ITEMS, seed=SEED)):
            request = GenerationRequest(f"{entry['question'].strip()}\nAnswer:\n", (stop,), max_tokens)
            yield WrittenAnswer(str(index), request, checker(entry["metadata"]))

    return load


PUZZLE_TASKS = {
    "mini-sudoku": Task(
        "written answer",
        "Sudoku of 4 by 4, 8 to 12 places open",
        "made from a fixed seed",
        NUM_ITEMS,
        "exact_match",
        _puzzles("mini_sudoku", _grid, "\n\n", 40),
    ),
    "sudoku": Task(
        "written answer",
        "Sudoku of 9 by 9, 30 to 50 places open",
        "made from a fixed seed",
        NUM_ITEMS,
        "exact_match",
        _puzzles("sudoku", _grid, "\n\n", 200),
    ),
    "countdown": Task(
        "written answer",
        "Countdown: reach a number with four to six others",
        "made from a fixed seed",
        NUM_ITEMS,
        "exact_match",
        _puzzles("countdown", _sum, "\n", 48),
    ),
}
