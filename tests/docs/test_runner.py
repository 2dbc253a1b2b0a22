"""The runner itself: it finds what does not run, and what is not printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from docs import pages
from docs.looks import differences
from docs.pages import Block, blocks, seen, tabs
from docs.running import Ran, Reader

PRINTED = """task  error  worst layer's name
sst2   9.1%  roberta.encoder.layer.3.attention.self.query
663 kB of adapters as 411 kB (62%)
version 1 (2026-01-01T00:00:00Z)
"""


@pytest.mark.parametrize(
    "shown",
    [
        "task  error  worst layer's name",
        "task error worst layer's name\nsst2  ~12.3%  roberta.encoder.layer.0.output.dense",
        "...\n1.2 MB of adapters as 3 B (1%)",
        "version 2 (2027-12-31T23:59:59Z)",
    ],
)
def test_numbers_and_layers_do_not_count(shown: str) -> None:
    assert not differences(shown, PRINTED)


@pytest.mark.parametrize(
    "shown",
    [
        "task  loss  worst layer's name",
        "rte   9.1%  roberta.encoder.layer.3.attention.self.query",
        "663 kB of adapters",
        "version 1 (2026-01-01T00:00:00Z)\ntask  error  worst layer's name",
    ],
)
def test_text_and_order_count(shown: str) -> None:
    assert differences(shown, PRINTED)


def test_json_is_compared_by_its_names() -> None:
    printed = '{"a": 1, "b": {"c": [2]}}'
    assert not differences('{\n  "a": 7,\n...\n  "c": [', printed)
    assert differences('{"d": 1}', printed) == ['"d"']


PAGE = """
<!-- setup: $ sharespace --version -->

=== "One"

    ```console
    $ sharespace --version
    ```

=== "Two"

    ```python
    print(6 * 7)
    ```

    ```text
    42
    ```

<!-- exit: 2 -->
```console
$ sharespace info nothing.share
sharespace: nothing.share: no Share model there
```

<!-- not run: it needs the network -->
```console
$ sharespace plan user/repo
```

```python
raise SystemError("text")
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_page_is_read_once_per_tab(page: Path) -> None:
    found = blocks(page)
    assert tabs(found) == ["One", "Two"]
    common = ["setup", "console", "console", "python"]
    assert [b.language for b in seen(found, "One")] == [*common[:1], "console", *common[1:]]
    assert [b.language for b in seen(found, "Two")] == [*common[:1], "python", "text", *common[1:]]


def test_marks_belong_to_the_next_block(page: Path) -> None:
    found = {b.text.splitlines()[0]: b for b in blocks(page)}
    assert found["$ sharespace info nothing.share"].exit_code == 2
    assert found["$ sharespace plan user/repo"].not_run == "it needs the network"
    assert not found['raise SystemError("text")'].not_run


def test_a_reader_runs_blocks_in_order(page: Path, desk: Callable[[], Path]) -> None:
    desk()
    ran: list[Ran] = []
    with pytest.raises(SystemError, match="text"):
        ran.extend(_each(ran, seen(blocks(page), "Two")))
    assert [r.exit_code for r in ran] == [0, 0, 2]
    assert [r.expected_exit for r in ran] == [0, 0, 2]
    assert (ran[1].shown, ran[1].printed) == ("42", "42\n")


def _each(ran: list[Ran], found: list[Block]) -> list[Ran]:
    for one in Reader().follow(found):
        ran.append(one)
    return []


def test_other_programs_are_refused(page: Path) -> None:
    page.write_text("```console\n$ rm -rf x\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="only sharespace"):
        list(Reader().follow(blocks(page)))
