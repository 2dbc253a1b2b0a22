"""Text sets as instructions: what the model is given, and what it should answer.

24 tasks of eleven sets: topics and kinds, stars in words, good or bad, inference, yes or no, the
intents of a bank's customers and of the ten domains of clinc150, and four rules that rewrite or
extract. Of the 15 sets four are left out: cb and copa have a few hundred examples, passages of
multirc are much longer than the examples here, and wic would be a 25th task.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.generation.rules import RULES
from experiments.text_stream.sets import TextSet, read

DOMAINS = 10
DOMAIN_CLASSES = 15
"""Classes of each domain of clinc150."""
REWRITING = ("reverse", "rotate", "last-2", "long")
"""Of ``experiments.generation.rules``; the last one extracts, the others rewrite."""


@dataclass(frozen=True)
class Example:
    """One example; what the model is given is one or two texts, then the instruction."""

    texts: tuple[str, ...]
    instruction: str
    answer: str
    labels: tuple[str, ...] = ("",)
    """What stands before each text."""

    def content(self, texts: Sequence[str]) -> str:
        """What the user says.

        Args:
            texts: the example's own, or their beginnings.
        """
        lines = [label + text for label, text in zip(self.labels, texts, strict=True)]
        return "\n".join([*lines, self.instruction])


@dataclass(frozen=True)
class InstructionTask:
    """One task of the stream."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    options: tuple[str, ...] = ()
    """All answers of a choice that is named in the instruction; empty for free text."""


@dataclass(frozen=True)
class SetForm:
    """How a set is said as an instruction."""

    instruction: str
    answers: tuple[str, ...] | None = None
    """Of the classes, in the order of ``labels.txt``; None: the classes' own names, as words."""
    first: str = ""
    """What stands before the text."""
    second: str = ""
    """What stands before the second text, where examples are pairs."""


INFERENCE = SetForm(
    "Does the second sentence follow from the first? Answer true, false or unclear.",
    None,
    "First: ",
    "Second: ",
)
STARS = SetForm(
    "How does the customer like it? Answer terrible, bad, okay, good or great.",
    ("terrible", "bad", "okay", "good", "great"),
)
FORMS: Mapping[str, SetForm] = {
    "agnews": SetForm(
        "What is the topic? Answer world, sports, business or science.",
        ("world", "sports", "business", "science"),
    ),
    "dbpedia": SetForm("What kind of thing is this? Name the kind."),
    "banking77": SetForm("What does the customer of the bank want? Name the intent."),
    "amazon5": STARS,
    "yelp5": STARS,
    "imdb": SetForm("Is this review of a film good or bad?", ("good", "bad")),
    "mnli": SetForm(
        INFERENCE.instruction, ("unclear", "true", "false"), INFERENCE.first, INFERENCE.second
    ),
    "qnli": SetForm(
        "Does the sentence answer the question? Answer yes or no.",
        ("yes", "no"),
        "Question: ",
        "Sentence: ",
    ),
    "rte": SetForm(
        "Does the second sentence follow from the first? Answer yes or no.",
        ("no", "yes"),
        "First: ",
        "Second: ",
    ),
    "boolq": SetForm("Answer the question with yes or no.", ("yes", "no")),
}
"""Set -> its form. The classes of dbpedia, banking77 and clinc150 are too many to name all of them
in every prompt, so their answers are free text."""


def make_tasks(data: Path, train: int, test: int) -> dict[str, InstructionTask]:
    """All tasks by name, the same at every call.

    Args:
        data: folder with one folder a set.
        train: training examples of a task, at most.
        test: test examples of a task, at most.
    """
    tasks = {}
    for name, form in FORMS.items():
        answers = form.answers or _words(data / name)
        tasks[name] = InstructionTask(
            name,
            _examples(read(data / name, "train", train, seed=0), form, answers),
            _examples(read(data / name, "test", test, seed=0), form, answers),
            form.answers or (),
        )
    for domain in range(DOMAINS):
        name, folder = f"clinc150-{domain}", data / "clinc150"
        tasks[name] = InstructionTask(
            name, _domain(folder, "train", domain, train), _domain(folder, "test", domain, test)
        )
    for rule in REWRITING:
        name = f"rule-{rule}"
        tasks[name] = InstructionTask(
            name, _rewritten(data, "train", rule, train), _rewritten(data, "test", rule, test)
        )
    return tasks


def _words(folder: Path) -> tuple[str, ...]:
    lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.replace("_", " ").lower() for line in lines)


def _examples(examples: TextSet, form: SetForm, answers: Sequence[str]) -> tuple[Example, ...]:
    texts = [examples.texts, examples.pairs] if examples.pairs else [examples.texts]
    labels = (form.first, form.second) if examples.pairs else (form.first,)
    return tuple(
        Example(some, form.instruction, answers[label], labels)
        for some, label in zip(zip(*texts, strict=True), examples.labels, strict=True)
    )


def _domain(folder: Path, split: str, domain: int, limit: int) -> tuple[Example, ...]:
    """Requests of one domain of clinc150."""
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["domain"] == domain]
    drawn = random.Random(domain).sample(rows, min(limit, len(rows)))
    names = _words(folder)
    instruction = "What does the user want? Name the intent."
    return tuple(Example((row["text"],), instruction, names[int(row["label"])]) for row in drawn)


def _rewritten(data: Path, split: str, rule: str, limit: int) -> tuple[Example, ...]:
    """Beginnings of requests, five to eight words each, and what the rule makes of them."""
    draw = random.Random(f"{rule} {split}")
    said, rewrite = RULES[rule]
    texts = [text.split() for text in read(data / "clinc150", split, None, seed=0).texts]
    long = [words for words in texts if len(words) >= 5]
    cut = [words[: draw.randint(5, 8)] for words in draw.sample(long, min(limit, len(long)))]
    instruction = f"{said.capitalize()}."
    return tuple(Example((" ".join(w),), instruction, " ".join(rewrite(w))) for w in cut)
