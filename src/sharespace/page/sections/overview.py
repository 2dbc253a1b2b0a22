"""The head of the page, and the warnings."""

from __future__ import annotations

from sharespace.page.facts import Facts
from sharespace.page.markup import Html, tag
from sharespace.page.sections.frame import section
from sharespace.page.warnings import Notice
from sharespace.page.words import count, human, percent, span


def header(facts: Facts) -> Html:
    """What it is, in one look."""
    base = tag("strong", facts.base or "a base model that is not stated")
    made = f"version {facts.version}, {facts.created.replace('T', ' ').replace('Z', ' UTC')}"
    tiles = [
        _tile("tasks", f"{len(facts.tasks):,}", f"on {count(len(facts.layers), 'layer')}"),
        _tile("dimension k", span(facts.k), _how(facts)),
        _tile("on disk", human(facts.parts.total), _against(facts)),
        _tile("largest bound", percent(_largest(facts)), "on a task's relative error"),
    ]
    return tag(
        "header",
        tag("p", "Share model", class_="kicker"),
        tag("h1", facts.name),
        tag("p", "of ", base, f" — {made}", class_="made"),
        tag("dl", tiles, class_="tiles"),
    )


def _how(facts: Facts) -> str:
    budget = facts.settings.budget
    limit = "" if budget is None else f", budget {human(budget)}"
    return f"method {facts.settings.method}, {facts.dtype}{limit}"


def _tile(name: str, value: str, more: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", more)))


def _against(facts: Facts) -> str:
    parts = facts.parts
    if not parts.adapters:
        return "no adapters to compare with"
    return f"{parts.total / parts.adapters:.0%} of {human(parts.adapters)} of adapters"


def _largest(facts: Facts) -> float:
    return max((t.kept.bound for t in facts.tasks), default=0.0)


def warnings(found: tuple[Notice, ...]) -> Html:
    """All notices, each with what to do."""
    if not found:
        return section("warnings", "Warnings", tag("p", "None: nothing here needs attention."))
    return section("warnings", "Warnings", tag("ul", [_notice(n) for n in found], class_="notices"))


def _notice(notice: Notice) -> Html:
    level = {"serious": "Warning", "note": "Note"}[notice.level]
    return tag(
        "li",
        tag("h3", tag("span", level, class_="level"), " ", notice.title),
        tag("p", notice.text),
        tag("p", tag("b", "What to do: "), notice.remedy),
        class_=f"notice {notice.level}",
        data_kind=notice.kind,
    )
