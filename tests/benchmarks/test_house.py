"""The shape of the code base is counted right, and what a verb enters is found."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")
pytest.importorskip("peft", reason="extra 'train' is not installed")

import sharespace
from benchmarks import house

SOURCE = '''\
"""A docstring
of two lines."""

from typing import TYPE_CHECKING, Any, cast

from small import b  # a comment

if TYPE_CHECKING:
    from small import c


class Twice:
    field: "dict[str, Any]"
    """Another docstring."""

    def method(self, more: Any) -> None:
        # A comment alone.
        def inner() -> None:
            kept = 1

        [found for found in cast(Any, more)]
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "small"
    (root / "inner").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text(SOURCE)
    (root / "b.py").write_text("import small.inner.a\n\n\nclass Twice:\n    pass\n")
    (root / "c.py").write_text("def late():\n    from small import d\n")
    (root / "d.py").write_text("from .c import late\n")
    (root / "inner" / "__init__.py").write_text("")
    (root / "inner" / "a.py").write_text("from .. import a\n")
    return root


def test_static_counts(package: Path) -> None:
    counts, names = house.shape(package)
    assert counts["files"] == counts["Python files, as in the wheel"] == 7
    assert counts["lines"] == 21 + 5 + 2 + 1 + 1
    assert counts["lines per file, median"] == 1
    assert counts["lines per file without `__init__`, p90"] == 21
    assert counts["lines per function, most"] == 6
    assert counts["comments per 1000 lines"] == pytest.approx(1000 * 2 / 30)
    assert counts["Any per 1000 lines"] == pytest.approx(1000 * 2 / 30)
    assert counts["functions that bind a vague name"] == 2
    bound = {n: counts[f"functions that bind {n!r}"] for n in ("found", "kept", "more")}
    assert bound == {"found": 1, "kept": 1, "more": 0}
    assert names["module names used twice or more"] == {"a": 2}
    assert names["class names used twice or more"] == {"Twice": 2}
    assert names["import circles"] == [["small.a", "small.b", "small.inner.a"]]


def test_only_code_is_code() -> None:
    assert house.code_and_comments(SOURCE, ast.parse(SOURCE)) == (10, 2)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_one_verb_and_the_table_beside_earlier_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, earlier = tmp_path / "house.json", tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"figures": {"lines": 1234, "a lost figure": 1.25}}))
    house.main(["--verbs", "export", "--json", str(out), "--compare", str(earlier)])
    results = json.loads(out.read_text())
    files = results["names"]["files that export enters"]
    assert files == sorted(set(files))
    assert all((house.ROOT / file).is_file() for file in files)
    assert 0 < results["figures"]["files that export enters"] == len(files) < 60
    table = capsys.readouterr().out
    assert f"| files that export enters |  | {len(files)} |" in table
    assert f"| lines | 1,234 | {results['figures']['lines']:,} |" in table
    assert "| a lost figure | 1.2 |  |" in table


def test_imports_do_not_enter_a_file() -> None:
    assert house.entered(lambda: None) == []
    assert house.entered(lambda: sharespace.__dir__()) == ["__init__.py"]
