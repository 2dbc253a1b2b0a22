"""What a recipe's file may hold: keys, and the values that they take.

The options of the dataclasses in ``keys`` are the keys: their type is the annotation, their limits
are those of the option, their text is the docstring under the field. A file is read as a YAML tree
with lines, in which each key stands once and no tag makes an object; every value that cannot be
used is a ``RecipeProblem`` with its line.
"""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
from ast import AnnAssign, ClassDef, Constant, Expr, Name
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from sharespace.errors import RecipeError
from sharespace.options import Limits, option_type, with_choices

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?")

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".safetensors", ".bin")

PREFIX = "tag:yaml.org,2002:"
"""Before the tags of YAML's own types."""

NULL, TEXT, BOOL = PREFIX + "null", PREFIX + "str", PREFIX + "bool"

SCALARS = frozenset(PREFIX + t for t in ("null", "str", "bool", "int", "float", "timestamp"))

BOOLEANS = yaml.SafeLoader.bool_values

# As people write numbers: 1e-3 too, which YAML 1.1 takes for text; no octal and no 1:30, which it
# takes for numbers.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")

_NUMBER = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][-+]?[0-9]{1,3})?")

_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Key:
    """One key, as the reader and the reference page need it."""

    name: str
    choices: tuple[str, ...]
    """Of a Literal; else empty."""
    type: Any
    """bool, int, float, str, RecipeSource, or tuple for a list of texts; str for a Literal."""
    optional: bool
    """It may be null."""
    words: tuple[str, ...]
    """Texts that may stand in the place of a number, such as ``auto``."""
    default: Any
    """MISSING where the key is needed."""
    limits: Limits
    neutral: bool

    @property
    def needed(self) -> bool:
        return self.default is MISSING


def keys_of(group: type) -> Mapping[str, Key]:
    """The keys among a dataclass's options, in order."""
    hashable: Any = group  # Classes are hashable, which mypy does not see.
    return _keys_of(hashable)


@cache
def _keys_of(group: type) -> Mapping[str, Key]:
    hints = get_type_hints(group)
    inherited = {f.name for base in group.__mro__[1:] if is_dataclass(base) for f in fields(base)}
    # A class's own keys first: in this order run folders of earlier versions hold them.
    own = sorted(
        (f for f in fields(group) if f.metadata.get("in_recipe")), key=lambda f: f.name in inherited
    )
    return {f.name: _key(f.name, hints[f.name], f.default, f.metadata) for f in own}


def _key(name: str, hint: Any, default: Any, metadata: Mapping[str, Any]) -> Key:
    said = with_choices(option_type(hint), metadata)
    return Key(
        name,
        said.choices,
        said.kind,
        said.optional,
        said.words,
        default,
        metadata["limits"],
        metadata["neutral"],
    )


def texts_of(group: type) -> dict[str, str]:
    """Key -> the docstring under its field, on one line; inherited keys included."""
    texts: dict[str, str] = {}
    for each in reversed(group.__mro__[:-1]):
        (body,) = (
            n.body for n in ast.parse(inspect.getsource(each)).body if isinstance(n, ClassDef)
        )
        texts |= {name: " ".join(text.split()) for name, text in _documented(body)}
    return texts


def _documented(body: list[Any]) -> Iterator[tuple[str, str]]:
    for statement, after in pairwise(body):
        named = isinstance(statement, AnnAssign) and isinstance(statement.target, Name)
        if named and isinstance(after, Expr) and isinstance(after.value, Constant):
            yield statement.target.id, str(after.value.value)


@dataclass(frozen=True)
class RecipeSource:
    """What is at a path, or else on the Hub; a relative path counts from the recipe's folder."""

    text: str
    """As written."""
    path: Path
    """Where it lies if it is local."""

    @classmethod
    def of(cls, text: str, folder: Path) -> RecipeSource:
        """The source of a text as written, in which ``~`` is the user's home folder.

        Args:
            text: a path or a Hub id.
            folder: the recipe's, from which relative paths count.
        """
        # Path.expanduser raises where there is no home folder; this leaves the text as it is.
        return cls(text, folder / os.path.expanduser(text))  # noqa: PTH111

    @property
    def is_local(self) -> bool:
        """True where something is at the path, or the text cannot be a Hub id."""
        return os.path.lexists(self.path) or not self.may_be_hub

    @property
    def may_be_hub(self) -> bool:
        """True where the text has the form ``name``, ``user/name`` or ``user/name@revision``."""
        return bool(_HUB_ID.fullmatch(self.text)) and not self.text.lower().endswith(_SUFFIXES)

    def __str__(self) -> str:
        """What loaders take: the path where it is local, else the Hub id."""
        return str(self.path) if self.is_local else self.text


@dataclass(frozen=True)
class RecipeProblem:
    """One thing that is wrong."""

    line: int | None
    """From 1; None where none is known."""
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}" if self.line else self.why


@dataclass(frozen=True)
class RecipeEntry:
    """A key and what it holds."""

    name: str
    line: int
    node: yaml.Node


def parse(text: str, where: str) -> yaml.Node | None:
    """The tree of a document; None where it is empty.

    Args:
        text: YAML.
        where: the file, for errors.

    Raises:
        RecipeError: it is no YAML, or more than one document.
    """
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(x for x in (error.context, error.problem) if x)
        problem = RecipeProblem(mark.line + 1 if mark else None, f"not valid YAML ({why})")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = RecipeProblem(None, f"not valid YAML ({reason})")
    raise RecipeError(where, (str(problem),), "Correct it")


def entries(
    node: yaml.MappingNode, where: str, problems: list[RecipeProblem]
) -> dict[str, RecipeEntry]:
    """The keys of a mapping; what is no usable key is a problem.

    Args:
        node: the mapping.
        where: before the key's name in problems, for example ``"tasks[1]."``.
        problems: added to.
    """
    by_name: dict[str, RecipeEntry] = {}
    for name_node, value in node.value:
        line = name_node.start_mark.line + 1
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
        if name is None or name_node.tag == PREFIX + "merge":
            kind = "a list or mapping" if name is None else "<< (a merge key)"
            problems.append(RecipeProblem(line, f"{where[:-1] or 'recipe'}: {kind} is no key here"))
        elif name in by_name:
            first = by_name[name].line
            why = f"written twice, first in line {first}"
            problems.append(RecipeProblem(line, f"{where}{name[:80]}: {why}"))
        else:
            by_name[name] = RecipeEntry(name, line, value)
    return by_name


class UnusableError(Exception):
    """A node is no value that its key may have; the text says why."""


def value_of(key: Key, node: yaml.Node, folder: Path) -> Any:
    """The value that a node gives a key.

    Args:
        key: what may stand there.
        node: what stands there.
        folder: the recipe's, for relative paths.

    Raises:
        UnusableError: it is none that the key may have; the text says why.
    """
    if isinstance(node, yaml.ScalarNode) and node.tag == NULL:
        if key.optional:
            return None
        raise UnusableError(
            "is empty; leave it out for its default" if not key.needed else "is empty"
        )
    if key.type is tuple:
        return _texts(node)
    if isinstance(node, yaml.ScalarNode) and node.value in key.words:
        return node.value
    try:
        value = _READERS[key.type](_scalar(node))
    except UnusableError as error:
        raise UnusableError(", or ".join([str(error), *key.words])) from None
    if key.choices and value not in key.choices:
        choices = ", ".join(key.choices)
        raise UnusableError(f"is {brief(value)!r}, not one of {choices}{hint(value, key.choices)}")
    if key.type in (int, float) and not key.limits.allow(value):
        raise UnusableError(f"is {value}, but it must be {key.limits}")
    if key.type is Path:
        return RecipeSource.of(value, folder).path
    return RecipeSource.of(value, folder) if key.type is RecipeSource else value


def _scalar(node: yaml.Node) -> yaml.ScalarNode:
    if not isinstance(node, yaml.ScalarNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        raise UnusableError(f"is {kind}, but one value is wanted")
    if node.tag not in SCALARS:
        raise UnusableError(f"has the tag {brief(node.tag)!r}, which is not read")
    return node


def _texts(node: yaml.Node) -> tuple[str, ...]:
    """A list of texts; one text alone is a list of one."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    texts = tuple(_text(_scalar(item)) for item in items)
    twice = [text for i, text in enumerate(texts) if text in texts[:i]]
    if twice:
        raise UnusableError(f"has {brief(twice[0])!r} twice")
    return texts


def _text(node: yaml.ScalarNode) -> str:
    """As it is written: a label ``no`` is no boolean, a name ``007`` no number."""
    text: str = node.value
    if node.tag == NULL or not text.strip():
        raise UnusableError("has an empty text")
    if _UNUSABLE.search(text):
        raise UnusableError("holds control characters")
    return text


def _flag(node: yaml.ScalarNode) -> bool:
    if node.tag != BOOL or node.value.lower() not in BOOLEANS:
        raise UnusableError(f"is {brief(node.value)!r}, but true or false is wanted")
    return BOOLEANS[node.value.lower()]


def _whole(node: yaml.ScalarNode) -> int:
    if _is_text(node) or not _WHOLE.fullmatch(node.value):
        raise UnusableError(
            f"is {brief(node.value)!r}, but a whole number is wanted{_quotes(node)}"
        )
    return int(node.value)


def _number(node: yaml.ScalarNode) -> float:
    number = math.inf if _is_text(node) or not _NUMBER.fullmatch(node.value) else float(node.value)
    # Such as 1e999, which Python reads as infinite.
    if not math.isfinite(number):
        raise UnusableError(f"is {brief(node.value)!r}, but a number is wanted{_quotes(node)}")
    return number


_READERS: dict[type, Callable[[yaml.ScalarNode], Any]] = {
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
    Path: _text,
    RecipeSource: _text,
}


def _is_text(node: yaml.ScalarNode) -> bool:
    """True for what stands in quotes or has the tag ``!!str``: it is text on purpose."""
    return node.tag == TEXT and (node.style is not None or not _NUMBER.fullmatch(node.value))


def _quotes(node: yaml.ScalarNode) -> str:
    return ": leave out the quotes" if node.style in ("'", '"') else ""


def hint(name: str, known: tuple[str, ...]) -> str:
    """``; did you mean ...?`` where a known name is near."""
    near = get_close_matches(name[:80], known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def brief(text: str) -> str:
    """A text as errors show it."""
    return text if len(text) <= 60 else text[:57] + "..."
