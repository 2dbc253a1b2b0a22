"""The public surface: what `__all__` says, documented, and light to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import sharespace

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
