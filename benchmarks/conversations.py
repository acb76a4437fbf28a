"""Write conversations of the kinds that people have, for a drafter: questions by template, the answers by the model.

    python benchmarks/conversations.py TOPICS.txt OUT.jsonl [--questions 1400] [--max-tokens 160] [--seed 0]

TOPICS: any text whose documents begin with what they are about and " -- ". A draft is accepted where the model would
have written it, greedily, so the answers are the model's greedy ones (`unmask batch`, int8, which can be stopped and
given again). OUT is a file for `unmask convert --text`. The prompts of `unmask judge` are not among the questions.
"""

import argparse
import json
import lzma
import random
import re
import sys
from pathlib import Path

from unmask.cli.main import main as unmask
from unmask.evaluation.prompts import all_prompts

TEMPLATES = {
    "chat": (
        "What do you think about {topic}?",
        "hi! my friend keeps talking about {topic} and I have no idea what it is",
        "Is {topic} worth an afternoon of my time?",
        "How would you explain {topic} to a child of {small}?",
        "I have to talk about {topic} tomorrow in front of {number} people. Any advice?",
        "What is a good present for somebody who loves {topic}?",
        "Can you help me write a short message that invites {small} friends to an evening about {topic}?",
    ),
    "code": (
        "Write a Python function {name}(items) that returns every {small}th item.",
        "Write a class in Python that stores a {name} and a {other}, with a method that prints both.",
        "What does this do?\n\nfor {name} in range({number}):\n    if {name} % {small} == 0:\n        print({name})",
        "def {name}_of_{other}(x: int, y: int) -> int:\n",
        "Write a SQL query that selects the {small} largest values of column {name} from table {other}.",
        "How do I read a file line by line in {language_of_code} and count the lines that contain '{name}'?",
        "Write a unit test for a function that turns a {name} into a {other}.",
        "Write a bash command that renames every file beginning with {name}.",
    ),
    "languages": (
        "¿Qué es {topic}?",
        "Escribe una frase sobre {topic}.",
        "Qu'est-ce que {topic} ? Répondez en {small} phrases.",
        "Was ist {topic}? Antworte auf Deutsch.",
        "Che cosa sai di {topic}?",
        "Traduis en français : I would like to know more about {topic}.",
        "Translate into Spanish: my brother has {number} books about {topic}.",
        "Wie sagt man auf Deutsch: we leave at {small} o'clock?",
        "O que você sabe sobre {topic}?",
        "Say good morning and count to {small} in Italian.",
    ),
    "list": (
        "List {small} things to know about {topic}.",
        "Give me {small} questions for a quiz about {topic}.",
        "Name {small} animals whose names begin with the letter {letter}.",
        "Write a checklist for a visit to {topic}.",
        "What are the steps to learn about {topic}? Number them.",
        "Make a table of {small} words that go with '{name}' and what they mean.",
        "Give me {small} titles for an article on {topic}.",
    ),
    "maths": (
        "What is {number} plus {second}?",
        "What is {number} times {small}?",
        "A shop sells {number} apples on each of {small} days. How many is that?",
        "Solve {small}x + {number} = {second} for x, step by step.",
        "What is {small} percent of {second}?",
        "A train goes {number} kilometres in {small} hours. What is its speed?",
        "Find the mean of {small}, {number} and {second}.",
        "The sides of a rectangle are {small} and {number} metres. What is its area?",
    ),
    "prose": (
        "Write a short story about {topic}.",
        "Write a paragraph on the history of {topic}.",
        "Describe {topic} as if you had seen it this morning.",
        "Write the beginning of a letter from someone who has just discovered {topic}.",
        "Write a poem of {small} lines about {topic}.",
        "Summarise what matters about {topic} in a few sentences.",
        "Write a newspaper article with the title '{topic}: {number} years later'.",
    ),
}
WORDS = (
    "price",
    "user",
    "total",
    "word",
    "point",
    "node",
    "name",
    "score",
    "colour",
    "day",
    "file",
    "key",
    "order",
    "page",
)


def topics(path: Path) -> list[str]:
    """Return what the documents of a text are about, each once."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        found = {
            match[1].strip() for line in lines if (match := re.match(r"([A-Z][^.:(\n]{2,40}?) -- ", line))
        }
    return sorted(found)


def questions(subjects: list[str], count: int, seed: int) -> list[str]:
    """Return `count` different questions, the kinds taking turns."""
    draw = random.Random(seed)
    kept: dict[str, None] = {}
    banned = {prompt.text for prompt in all_prompts()}
    while len(kept) < count:
        kind = list(TEMPLATES)[len(kept) % len(TEMPLATES)]
        question = draw.choice(TEMPLATES[kind]).format(
            topic=draw.choice(subjects),
            name=draw.choice(WORDS),
            other=draw.choice(WORDS),
            letter=draw.choice("ABCDEFGHLMPRST"),
            language_of_code=draw.choice(("Python", "JavaScript", "C", "Go")),
            small=draw.randint(2, 12),
            number=draw.randint(11, 99),
            second=draw.randint(100, 999),
        )
        if question not in banned:
            kept[question] = None
    return list(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topics", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=int, default=1400)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asked = questions(topics(arguments.topics), arguments.questions, arguments.seed)
    requests = arguments.out.with_suffix(".questions.jsonl")
    requests.write_text(
        "".join(json.dumps({"id": str(n), "prompt": text}) + "\n" for n, text in enumerate(asked))
    )
    answers = arguments.out.with_suffix(".answers.jsonl")
    options = ["--out", str(answers), "--max-tokens", str(arguments.max_tokens)]
    status = unmask(["batch", str(requests), *options, "--quantize", "int8", "--max-requests", "96"])
    if status:
        sys.exit(status)
    by_id = {answer["id"]: answer["text"] for answer in map(json.loads, answers.read_text().splitlines())}
    with arguments.out.open("w") as out:
        for number, question in enumerate(asked):
            roles = (("user", question), ("assistant", by_id[str(number)]))
            messages = [{"role": role, "content": content} for role, content in roles]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    print(f"{len(asked)} conversations in {arguments.out}")


if __name__ == "__main__":
    main()
