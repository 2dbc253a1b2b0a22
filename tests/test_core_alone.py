"""The wheel, installed with the core's dependencies alone: what is not installed is left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

import sharespace

ROOT = Path(__file__).resolve().parents[1]

NEEDS_TRAIN = {
    *("MixedTasks", "ShareConfig", "TaskMethod", "TrainingSettings", "adapt", "calibrate"),
    *("collect", "finetune", "merge_from", "publish", "release"),
}

HIDE = """
import importlib.machinery, json, os, sys
hidden = set(json.loads(os.environ["HIDDEN"]))
class Core:
    find_distributions = importlib.machinery.PathFinder.find_distributions
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)
sys.meta_path = [Core if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
# Finders of editable installations would lead back to the checkout.
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
"""


def closure(names: Iterable[str]) -> set[str]:
    """These distributions and all that they need, without anybody's extras."""
    known: set[str] = set()
    waiting = [_normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # for another platform or version of Python
            continue
        waiting += [_normal(line) for line in needed if "extra ==" not in line]
    return known


def _normal(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds: built where hatchling is at hand, else copied."""
    folder = tmp_path_factory.mktemp("site")
    if find_spec("hatchling") is None:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src" / "sharespace", folder / "sharespace", ignore=ignored)
        return folder
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(ROOT)], check=True)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def run(installed: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel and the core's dependencies, and nothing else that is not its own."""
    core = closure(line for line in requires("sharespace") or [] if "extra ==" not in line)
    hidden = [
        module
        for module, owners in packages_distributions().items()
        if not {_normal(owner) for owner in owners} & core
    ]
    environment = {**os.environ, "PYTHONPATH": str(installed), "HIDDEN": json.dumps(hidden)}
    return subprocess.run(
        [sys.executable, "-c", HIDE + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
        env=environment,
    )


def test_what_is_not_installed_is_left_out_and_says_so_when_asked_for(installed: Path) -> None:
    code = f"""
import sharespace
assert sharespace.__file__.startswith({str(installed)!r}), sharespace.__file__
assert "torch" not in sys.modules, "importing is light"
assert dir(sharespace) == sharespace.__all__
names = {{}}
exec("from sharespace import *", names)
assert set(sharespace.__all__) <= set(names)
import pydoc
page = pydoc.plain(pydoc.render_doc(sharespace))
assert "class Share(" in page and "class ShareConfig" not in page, page[:2000]
for name in {sorted(NEEDS_TRAIN)!r}:
    try:
        getattr(sharespace, name)
    except sharespace.MissingExtraError as error:
        assert "sharespace[train]" in str(error) and name in str(error), error
    else:
        raise SystemExit(f"{{name}} is there")
print(json.dumps(sharespace.__all__))
"""
    done = run(installed, code)
    assert done.returncode == 0, done.stderr
    assert set(sharespace.__all__) - set(json.loads(done.stdout)) == NEEDS_TRAIN


def test_the_command_line_runs(installed: Path) -> None:
    code = 'sys.argv = ["sharespace", "info", "nowhere"]\nfrom sharespace.cli import main\nmain()'
    done = run(installed, code)
    assert done.returncode == 2
    assert done.stderr.startswith("sharespace: nowhere")
