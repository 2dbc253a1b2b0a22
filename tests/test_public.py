"""The public surface: what `__all__` says, documented, and light to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sharespace
from sharespace import errors

LIGHT = """
import sys
{statement}
heavy = sorted({{"torch", "numpy", "safetensors", "peft", "transformers"}} & set(sys.modules))
assert not heavy, heavy
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_all_is_the_real_surface_and_sorted() -> None:
    assert sharespace.__all__ == sorted(sharespace.__all__)
    assert len(set(sharespace.__all__)) == len(sharespace.__all__)
    own = {n for n in vars(sharespace) if not n.startswith("_")}
    hidden = {"annotations", "import_module", "TYPE_CHECKING"}
    modules = {n for n in own if inspect.ismodule(getattr(sharespace, n))}
    assert own - hidden - modules <= set(sharespace.__all__)
    assert set(sharespace._HOMES) == set(sharespace.__all__) - {"__version__"}
    assert dir(sharespace) == sharespace.__all__


@pytest.mark.parametrize("name", sharespace.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sharespace, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sharespace.nothing


def test_public_names_stay_what_they_are_when_submodules_are_imported() -> None:
    """A submodule of a package becomes its attribute, and could take a function's place."""
    code = """
import pkgutil, importlib, sharespace
for package in ("store", "subspace", "linalg", "formats"):
    found = importlib.import_module(f"sharespace.{package}")
    for module in pkgutil.iter_modules(found.__path__):
        importlib.import_module(f"sharespace.{package}.{module.name}")
import types
for name in sharespace.__all__:
    assert not isinstance(getattr(sharespace, name), types.ModuleType), name
"""
    done = _run(code)
    assert done.returncode == 0, done.stderr


def _documented() -> Iterator[tuple[str, object]]:
    for name in sharespace.__all__:
        found = getattr(sharespace, name)
        if name == "__version__":
            continue
        yield name, found
        if inspect.isclass(found):
            for attribute, value in vars(found).items():
                if attribute.startswith("_") or not _is_ours(value):
                    continue
                yield f"{name}.{attribute}", value


def _is_ours(value: object) -> bool:
    return isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)


# Ids by name alone: the repr of a function has its address, which differs from run to run.
@pytest.mark.parametrize(
    ("name", "found"), [pytest.param(*symbol, id=symbol[0]) for symbol in _documented()]
)
def test_every_public_symbol_and_method_has_a_docstring(name: str, found: object) -> None:
    text = inspect.getdoc(found)
    assert text, name
    # A dataclass without a docstring gets its signature as one.
    assert not text.startswith(f"{name}("), name


PACKAGES = ("sharespace", "sharespace.learn", "sharespace.tuner", "sharespace.serve")
REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "api.md"


def _public() -> Iterator[object]:
    """What the packages export, and what the page of the reference names."""
    for package in map(importlib.import_module, PACKAGES):
        for name in getattr(package, "__all__", ()):
            yield getattr(package, name)
    for name in re.findall(r"^::: (\S+)", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        yield getattr(importlib.import_module(module), attribute)


def _functions() -> dict[str, Callable[..., object]]:
    """The public functions and methods of the package, by their full names."""
    functions: dict[str, Callable[..., object]] = {}
    for symbol in _public():
        members = [symbol]
        if inspect.isclass(symbol):
            members = [getattr(symbol, name) for name in vars(symbol) if not name.startswith("_")]
        for member in members:
            if inspect.isroutine(member) and member.__module__.startswith("sharespace"):
                functions[f"{member.__module__}.{member.__qualname__}"] = member
    return functions


def _section(doc: str, title: str) -> str:
    """The lines of one section of a docstring, or none."""
    after = doc.partition(f"{title}:\n")[2]
    return re.split(r"^\S", after, maxsplit=1, flags=re.MULTILINE)[0]


def _named_arguments(doc: str) -> set[str]:
    heads = re.findall(r"^ {4}(\w[\w, ]*):", _section(doc, "Args"), re.MULTILINE)
    return {name for head in heads for name in head.split(", ")}


def _raises_itself(function: Callable[..., object]) -> bool:
    """True where the body raises one of the package's errors."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    called = (error.func for error in raised if isinstance(error, ast.Call))
    return any(isinstance(name, ast.Name) and hasattr(errors, name.id) for name in called)


def test_every_parameter_and_error_of_a_public_function_is_documented() -> None:
    functions = _functions()
    assert "sharespace.share.Share.merge" in functions
    missing = {}
    for name, function in functions.items():
        doc = inspect.getdoc(function) or ""
        parameters = set(inspect.signature(function).parameters) - {"self"}
        gaps = sorted(parameters - _named_arguments(doc))
        if _raises_itself(function) and not _section(doc, "Raises"):
            gaps.append("Raises:")
        if gaps:
            missing[name] = gaps
    assert not missing


@pytest.mark.parametrize(
    "statement",
    [
        "import sharespace",
        "import sharespace; sharespace.__all__; dir(sharespace)",
        "import sharespace.errors, sharespace.extras, sharespace.options",
        "import sharespace.cli",
    ],
)
def test_importing_is_light(statement: str) -> None:
    done = _run(LIGHT.format(statement=statement))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["init", "--help"], ["--version"]])
def test_the_command_lines_help_does_not_import_torch(arguments: list[str]) -> None:
    statement = f"""
import sharespace.cli
sys.argv = ["sharespace", *{arguments!r}]
try:
    sharespace.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    done = _run(LIGHT.format(statement=statement))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert sharespace.__version__ == version("sharespace")
