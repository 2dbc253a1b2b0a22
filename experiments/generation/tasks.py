"""The tasks: instructions, texts and answers, of the stream and of the base model's pretraining.

Classes and rules of the stream are not in the pretraining; its texts may be (without labels).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.generation.rules import RULES, TAUGHT, Rule
from experiments.generation.settings import Size
from experiments.generation.texts import Labelled, load

TAUGHT_CLINC = range(75)
"""Classes of clinc150 that are in the pretraining: the first five of its ten domains."""
TAUGHT_BANKING = range(30)
REWRITTEN = ("clinc150", "banking77")
"""Sets whose texts the rules are applied to."""
_DOMAIN = 15
"""Classes of a domain of clinc150."""


@dataclass(frozen=True)
class Example:
    """What the model is given, and what it should say."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class GenerationTask:
    """One task of the stream."""

    name: str
    kind: Literal["classes", "rewriting"]
    """Scored by exact match; or by Rouge-L."""
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def prompt(text: str, instruction: str) -> str:
    """The form that all examples have."""
    return f"text: {text} task: {instruction} answer:"


def choose(text: str, names: Sequence[str]) -> str:
    """The prompt of a choice between classes."""
    return prompt(text, f"choose {', '.join(names[:-1])} or {names[-1]}")


def make_tasks(data: Path, size: Size) -> list[GenerationTask]:
    """All tasks of the stream; the same at every call."""
    draw = random.Random(0)
    choices = [
        *_subsets(data, Subsets("clinc150", size.clinc, 4), size, draw),
        *_subsets(data, Subsets("banking77", size.banking, 4), size, draw),
        *_subsets(data, Subsets("dbpedia", size.dbpedia, 3), size, draw),
        *(_whole(data, name, classes, size) for name, classes in WHOLE.items()),
    ]
    wanted = list(RULES)[: size.rules]
    return [*choices, *(_rewriting(data, name, *RULES[name], size) for name in wanted)]


WHOLE: Mapping[str, tuple[int, ...]] = {
    "agnews": (0, 1, 2, 3),
    "dbpedia": tuple(range(14)),
    "amazon5": (0, 4),
    "yelp5": (0, 4),
}
"""Tasks by data set -> classes; of the reviews the two ends only."""


@dataclass(frozen=True)
class Subsets:
    """Choices between a few classes of a set."""

    name: str
    """Of the set."""
    tasks: int
    classes: int
    """Of each task."""


def _subsets(
    data: Path, wanted: Subsets, size: Size, draw: random.Random
) -> Iterator[GenerationTask]:
    name = wanted.name
    train, test = load(data, name, "train"), load(data, name, "test")
    for number in range(wanted.tasks):
        labels = draw.sample(_candidates(name, number, len(train.names)), wanted.classes)
        yield GenerationTask(
            f"{name}-{number}",
            "classes",
            _choices(train, labels, size.train, seed=number),
            _choices(test, labels, size.test, seed=number),
        )


def _candidates(name: str, number: int, classes: int) -> range:
    """Classes that a task may be of; of clinc150 those of one domain, which are hard to tell."""
    if name == "clinc150":
        begin = len(TAUGHT_CLINC) + number % 5 * _DOMAIN
        return range(begin, begin + _DOMAIN)
    return range(len(TAUGHT_BANKING) if name == "banking77" else 0, classes)


def _whole(data: Path, name: str, labels: Sequence[int], size: Size) -> GenerationTask:
    train, test = (
        _choices(load(data, name, split), labels, limit, seed=0, shown=name != "dbpedia")
        for split, limit in (("train", size.train), ("test", size.test))
    )
    return GenerationTask(name, "classes", train, test)


def _choices(
    labelled: Labelled, labels: Sequence[int], limit: int, seed: int, shown: bool = True
) -> tuple[Example, ...]:
    """Examples, as many of each class as there are of the others.

    Args:
        shown: the classes are named in the prompt.
    """
    draw = random.Random(seed)
    names = [labelled.names[label] for label in labels]
    examples = []
    for label, name in zip(labels, names, strict=True):
        texts = labelled.of_class(label)
        for text in draw.sample(texts, min(len(texts), -(-limit // len(labels)))):
            asked = choose(text, names) if shown else prompt(text, "name the kind of thing")
            examples.append(Example(asked, name))
    draw.shuffle(examples)
    return tuple(examples[:limit])


def _rewriting(data: Path, name: str, instruction: str, rule: Rule, size: Size) -> GenerationTask:
    train, test = (
        tuple(_rewritten(_few_words(data, split, limit, seed=name), instruction, rule))
        for split, limit in (("train", size.train), ("test", size.test))
    )
    return GenerationTask(f"rule-{name}", "rewriting", train, test)


def _few_words(data: Path, split: str, limit: int, seed: str) -> list[list[str]]:
    """Beginnings of texts, five to eight words each."""
    draw = random.Random(f"{seed} {split}")
    texts = [text.split() for name in REWRITTEN for text in load(data, name, split).texts]
    long = [words for words in texts if len(words) >= 5]
    return [words[: draw.randint(5, 8)] for words in draw.sample(long, min(limit, len(long)))]


def _rewritten(texts: Sequence[Sequence[str]], instruction: str, rule: Rule) -> Iterator[Example]:
    for words in texts:
        yield Example(prompt(" ".join(words), instruction), " ".join(rule(words)))


def taught(data: Path, count: int) -> list[Example]:
    """Instruction-like examples of the pretraining: half rules, half choices."""
    draw = random.Random(1)
    texts = _few_words(data, "train", count // 2, seed="taught")
    rules = list(TAUGHT.values())
    examples: list[Example] = []
    for at, words in enumerate(texts):
        examples += _rewritten([words], *rules[at % len(rules)])
    sources = [
        (load(data, "clinc150", "train"), list(TAUGHT_CLINC)),
        (load(data, "banking77", "train"), list(TAUGHT_BANKING)),
        (load(data, "imdb", "train"), [0, 1]),
    ]
    pools = [{c: source.of_class(c) for c in classes} for source, classes in sources]
    for _ in range(count // 2):
        at = draw.choices(range(3), weights=(6, 3, 1))[0]
        examples.append(_taught_choice(sources[at][0], pools[at], draw))
    draw.shuffle(examples)
    return examples


def _taught_choice(
    source: Labelled, pool: Mapping[int, Sequence[str]], draw: random.Random
) -> Example:
    labels = draw.sample(list(pool), min(draw.randint(2, 4), len(pool)))
    right = draw.choice(labels)
    names = [source.names[label] for label in labels]
    return Example(choose(draw.choice(pool[right]), names), source.names[right])


def plain_texts(data: Path) -> list[str]:
    """Training texts of all sets that are used, without labels."""
    sets = ("agnews", "amazon5", "banking77", "clinc150", "dbpedia", "imdb", "yelp5")
    return [text for name in sets for text in load(data, name, "train").texts if text]
