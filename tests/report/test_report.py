"""The page: whole, safe, the same every time, small; of every kind of store."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from builders import MODULE, adapter, build, relatives, update
from golden.make_store_v1 import PATH as GOLDEN
from report.parsing import Page
from report.samples import HOSTILE, MODULES, facts, made, store, task, two_steps
from sharespace.report import Facts, read_facts, render
from sharespace.report.facts import FileBytes
from sharespace.report.html import dotted, escape, tag
from sharespace.store import checkout, prune, remove
from sharespace.subspace.adapter import BaseModel
from sharespace.subspace.fidelity import StorageTally
from sharespace.subspace.state import Ledger
from sharespace.words import visible
from store.models import model as weird_model


def page(path: Path, version: int | None = None) -> Page:
    return Page(render(read_facts(path, version)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; don't write to it."""
    return two_steps(tmp_path_factory.mktemp("page") / "glue.share")


def test_it_has_all_sections_and_links_that_lead_somewhere(plain: Path) -> None:
    found = page(plain)
    wanted = {"warnings", "tasks", "layers", "families", "variance", "sizes", "ledger", "notes"}
    assert wanted <= found.ids
    assert "scores" not in found.ids
    targets = [href for href in found.attributes("href") if href.startswith("#")]
    assert {t.removeprefix("#") for t in targets} == wanted
    assert set(found.attributes("aria-labelledby")) <= found.ids


def test_it_names_base_tasks_layers_and_version(plain: Path) -> None:
    text = page(plain).text
    for name in ("glue.share", "sst2", "rte", "mrpc", "cola", "model.layers.0.up_proj"):
        assert name in text
    assert "version 2" in text
    assert "add cola" in text


def test_its_figures_are_those_of_the_library(plain: Path) -> None:
    found = read_facts(plain)
    opened = checkout(plain)
    names = {task.name for task in found.tasks}
    assert names == set(opened.model.tasks)
    for one in found.tasks:
        assert one.fidelity.bound == opened.model.tasks[one.name].ledger.bound
    files = list((plain / "objects").iterdir()) + list((plain / "versions").iterdir())
    assert found.file_bytes.total + found.file_bytes.history == sum(f.stat().st_size for f in files)


def test_the_same_version_gives_the_same_bytes(plain: Path) -> None:
    assert render(read_facts(plain)) == render(read_facts(plain))


def test_an_earlier_version_is_not_touched_by_later_ones(tmp_path: Path) -> None:
    path = two_steps(tmp_path / "s")
    before = render(read_facts(path, 1))
    remove(path, ["cola"])
    assert render(read_facts(path, 1)) == before


def test_nothing_is_asked_of_anybody(plain: Path) -> None:
    source = render(read_facts(plain))
    found = Page(source)
    assert not found.attributes("src")
    assert found.tags("link") == 0
    assert found.tags("script") == 1
    assert "//" not in re.sub(r"<script>.*?</script>", "", source, flags=re.DOTALL)
    assert not re.search(r"url\(|@import", source)
    assert all(href.startswith("#") for href in found.attributes("href"))


def test_only_its_own_script_and_style_may_run(plain: Path) -> None:
    source = render(read_facts(plain))
    policy = next(c for c in Page(source).attributes("content") if "default-src" in c)
    assert policy.startswith("default-src 'none'")
    for kind in ("script", "style"):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", source, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not Page(source).attributes("style")
    assert not [k for _, found in Page(source).elements for k in found if k.startswith("on")]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = [*HOSTILE, *(f"{name}2" for name in HOSTILE[:2])]
    odd = {f"{name}.{i}": update(6, 5, 2, i) for i, name in enumerate(HOSTILE[:4])}
    odd[MODULES[0]] = update(10, 8, 2, 99)  # Without a module in common it would be refused.
    adapters = [made(f"t{i}", i) for i in range(len(names))]
    model = build([*adapters, adapter("modules", odd)], k=3)
    # Stores of earlier releases have such names; new tasks do not get them any more.
    tasks = zip(model.tasks.values(), [*names, "modules"], strict=True)
    model = model.with_tasks(one.with_name(name) for one, name in tasks)
    source = render(read_facts(store(tmp_path / "s", model)))
    found = Page(source)
    source.encode()
    for name in names:
        assert escape(name) in source
        assert visible(name) in found.text
    assert found.tags("script") == 1
    assert found.tags("img") == 0
    assert "\u202e" not in source


def test_a_hostile_store_name_and_base(tmp_path: Path) -> None:
    model = weird_model(base=BaseModel("<b>", "main"))
    hostile, harmless = (store(tmp_path / name, model) for name in ("<b onload=x>", "s"))
    assert page(hostile).tags("b") == page(harmless).tags("b")
    assert "<b onload=x>" in page(hostile).text


@pytest.mark.parametrize("version", [1, 2, None])
def test_old_stores_render(version: int | None) -> None:
    text = page(GOLDEN, version).text
    assert "stored per task" in text


def test_stores_of_every_kind_render(tmp_path: Path) -> None:
    alone = store(tmp_path / "alone", build([made("only", 1)], k=2))
    assert "It takes two tasks to compare" in page(alone).text
    empty = remove(alone, ["only"])
    assert empty.task_count == 0
    assert "There is no task" in page(alone).text
    zero = store(tmp_path / "zero", build([adapter("zero", update(6, 5, 2, norm=0.0))], k=2))
    assert "without any update" in page(zero).text
    base = BaseModel("a/model")
    apart = [adapter(n, {f"{n}.q": update(6, 5, 2, i)}, base=base) for i, n in enumerate("abc")]
    assert "There are no families" in page(store(tmp_path / "apart", build(apart, k=2))).text


def test_a_pruned_history_is_said(tmp_path: Path) -> None:
    path = two_steps(tmp_path / "s")
    prune(path, keep=1)
    found = page(path)
    assert "1 earlier version pruned" in found.text
    assert "pruned" in found.attributes("data-kind")


def test_what_a_merge_cost_is_in_the_ledger(plain: Path) -> None:
    found = read_facts(plain)
    first, second = found.versions
    assert set(first.bounds) == {"sst2", "rte", "mrpc"}
    assert all(second.bounds[name] > first.bounds[name] for name in first.bounds)
    assert second.turn is not None
    assert second.turn > 0
    assert first.turn is None


def test_figures_have_words_and_numbers_beside_them(plain: Path) -> None:
    found = page(plain)
    pictures = [attrs for tag, attrs in found.elements if tag == "svg" and attrs.get("role")]
    assert len(pictures) >= 6
    assert found.tags("title") >= len(pictures) + 1
    heat = [attrs for attrs in pictures if attrs.get("class") == "heat"]
    assert len(heat) == 3
    for one in heat:
        rows, columns = (json.loads(one[f"data-{x}"] or "") for x in ("rows", "columns"))
        assert len((one["data-values"] or "").split(" ")) == len(rows) * len(columns)


def test_tables_are_read_by_machines_too(plain: Path) -> None:
    found = page(plain)
    heads = [attrs.get("scope") for tag, attrs in found.elements if tag == "th"]
    assert set(heads) == {"col", "row"}
    assert found.tags("caption") == found.tags("table")


def test_many_tasks_and_layers_stay_small(tmp_path: Path) -> None:
    """100 tasks x 100 layers; one layer is built, and taken a hundred times."""
    small = build([adapter(f"task-{t:03d}", update(4, 4, 1, t)) for t in range(100)], k=2)
    names = [f"model.layers.{i}.{kind}" for i in range(50) for kind in ("q_proj", "v_proj")]
    model = small.with_layers(dict.fromkeys(names, small.layers[MODULE])).with_tasks(
        replace(
            task,
            coefficients=dict.fromkeys(names, task.coefficients[MODULE]),
            ledger=Ledger(
                tuple(names),
                task.ledger.norms.repeat(100),
                task.ledger.truncations.repeat(100, 1),
                task.ledger.events,
            ),
        )
        for task in small.tasks.values()
    )
    source = render(read_facts(store(tmp_path / "s", model)))
    Page(source)
    assert len(source.encode()) < 2_000_000


def test_hundreds_are_limited_and_it_is_said() -> None:
    many = facts(*(task(f"task-{i:03d}", place=i + 1) for i in range(301)))
    found = Page(render(many))
    assert "The 150 tasks with the largest bounds of 301 are shown" in found.text
    assert "A cell is the mean of 2 × 2 neighbouring tasks" in found.text
    assert all(f"task-{i:03d}" in found.text for i in range(301))


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Relatives that share, a stranger that does not, and too few bytes for a small layer."""
    made = [
        adapter(a.name, {"h.0.q": a.layer(MODULE), "h.1.q": update(24, 20, 2, i, norm=1e-4)})
        for i, a in enumerate(relatives(8, 24, 20, k=2, rank=2))
    ]
    odd = adapter("odd", {"h.0.q": update(24, 20, 2, 77)})
    path = tmp_path_factory.mktemp("page") / "budget.share"
    return store(path, build([*made, odd], budget=4 * (44 * 2 + 8 * 4 + 44 * 2)))


def test_what_a_budget_chose_is_said_by_layer_and_in_all(budgeted: Path) -> None:
    found = read_facts(budgeted)
    stored = found.stored
    assert stored.per_task.updates >= 1
    assert stored.inside.updates >= 8
    assert stored.nothing.updates == 8
    assert sum((la.stored for la in found.layers), StorageTally()) == stored
    assert found.file_bytes.coefficients == stored.total.nbytes
    assert found.file_bytes.per_task == stored.per_task.nbytes
    assert {t.name for t in found.tasks if t.storage_kinds["h.0.q"] == "per_task"} >= {"odd"}
    text = page(budgeted).text
    assert "are stored in 3 ways. A byte budget of 832 B chose" in text
    assert "an SVD of its own, outside of any subspace" in text
    assert "the budget did not reach so far" in text
    for wanted in ("How it is stored", "within the budget", "kept to a budget of 832 B"):
        assert wanted in text


def test_one_way_is_a_sentence_and_no_map(tmp_path: Path) -> None:
    text = page(store(tmp_path / "s", build([made(n, i) for i, n in enumerate("ab")], k=3))).text
    assert "6 updates, stored in one way: all directions" in text
    assert "How it is stored" not in text
    assert "per task" not in text


def test_p_is_the_rank_and_not_what_a_core_is_padded_to(tmp_path: Path) -> None:
    """A core of an earlier task gains zero rows and columns at each merge."""
    path = store(
        tmp_path / "s",
        build([adapter("old", update(20, 16, 2, 0))], variance=1.0),
        *(adapter(f"new{i}", update(20, 16, 2, i + 1)) for i in range(3)),
    )
    found = {t.name: t.p for t in read_facts(path).tasks}
    assert set(found.values()) == {(2, 2)}


def test_a_module_may_break_after_its_dots_only() -> None:
    shown = tag("th", dotted("a.b<.c"))
    assert shown == "<th>a.<wbr>b&lt;.<wbr>c</th>"
    assert Page(shown).text == "a.b<.c"


def test_groups_with_subspaces_of_their_own_are_said() -> None:
    plainly = facts()
    several = replace(plainly.layers[0], subspaces=3)
    text = Page(render(replace(plainly, layers=(several, *plainly.layers)))).text
    assert "In 1 of 2 layers groups of tasks have a subspace each (up to 3)" in text
    assert "2 × 2 in 3" in text
    assert "subspace each" not in Page(render(plainly)).text


def test_out_of_core_layers_and_contributions_are_said() -> None:
    plainly = facts()
    streamed = replace(plainly.layers[0], streamed=True)
    found = replace(plainly, layers=(streamed, *plainly.layers), contributions=3)
    assert "into 1 of 2 layers out of core" in Page(render(found)).text
    assert "3 contributions of workers came in" in Page(render(found)).text
    for word in ("out of core", "contribution"):
        assert word not in Page(render(plainly)).text


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (facts(), "worth it", "It takes 65 % of the adapters' bytes (65 B instead of 100 B)"),
        (facts(task("gone", error=1.0, bound=1.0)), "not worth it", "nothing is left of 1 of 1"),
        (
            facts(task("a", bound=0.4), task("b", place=2), task("c", place=3)),
            "marginal",
            "1 of 3 tasks may have lost 30 % or more",
        ),
        (
            facts(file_bytes=FileBytes(90, 60, 5, 5, 5, 0, 100)),
            "not worth it",
            "no smaller than the adapters of its 2 tasks: 1.6 times their bytes",
        ),
    ],
)
def test_a_verdict_stands_on_top(found: Facts, verdict: str, words: str) -> None:
    drawn = Page(render(found))
    assert f"verdict {verdict.replace(' ', '-')}" in drawn.attributes("class")
    assert f"{verdict.capitalize()}. " in drawn.text
    assert words in drawn.text


def test_charts_come_before_tables() -> None:
    elements = Page(render(facts())).elements
    names = [name for name, attrs in elements if name == "table" or attrs.get("role") == "img"]
    assert names[:3] == ["svg", "svg", "table"]


def test_of_many_tasks_the_worst_twenty_are_shown_first() -> None:
    few, many = (
        render(facts(*(task(f"t{i:03d}", bound=i / 1000, place=i + 1) for i in range(n))))
        for n in (20, 60)
    )
    assert Page(few).attributes("data-shown") == []
    assert Page(many).attributes("data-shown") == ["20"]
    # Scripts hide rows; without them all are there, the worst first.
    rows = re.findall(r'<tr><th scope="row">(t\d+)</th>', many)
    assert rows == [f"t{i:03d}" for i in reversed(range(60))]


def test_relatives_by_chance_are_not_named() -> None:
    apart, near = (Page(render(facts(overlap=o, cosine=0.01))).text for o in (0.03, 0.4))
    assert "rte (0.40)" in near
    assert "(0.03)" not in apart
    assert "There are no families" in apart
    assert "the cosine of no two updates is beyond ±0.01" in near
    assert "Family A" in near
