"""YAML as a tree with lines: one meaning only, no key twice, no tags that make objects."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from sharespace.errors import RecipeError

PREFIX = "tag:yaml.org,2002:"
NULL, TEXT, BOOL = PREFIX + "null", PREFIX + "str", PREFIX + "bool"
SCALARS = frozenset(PREFIX + t for t in ("null", "str", "bool", "int", "float", "timestamp"))
BOOLEANS = yaml.SafeLoader.bool_values


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    line: int | None
    """From 1; None where none is known."""
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}" if self.line else self.why


@dataclass(frozen=True)
class Entry:
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
        problem = Problem(mark.line + 1 if mark else None, f"not valid YAML ({why})")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = Problem(None, f"not valid YAML ({reason})")
    raise RecipeError(where, (str(problem),), "Correct it")


def entries(node: yaml.MappingNode, where: str, problems: list[Problem]) -> dict[str, Entry]:
    """The keys of a mapping; what is no usable key is a problem.

    Args:
        where: before the key's name in problems, for example ``"tasks[1]."``.
        problems: added to.
    """
    found: dict[str, Entry] = {}
    for name_node, value in node.value:
        line = name_node.start_mark.line + 1
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
        if name is None or name_node.tag == PREFIX + "merge":
            kind = "a list or mapping" if name is None else "<< (a merge key)"
            problems.append(Problem(line, f"{where[:-1] or 'recipe'}: {kind} is no key here"))
        elif name in found:
            first = found[name].line
            why = f"written twice, first in line {first}"
            problems.append(Problem(line, f"{where}{name[:80]}: {why}"))
        else:
            found[name] = Entry(name, line, value)
    return found
