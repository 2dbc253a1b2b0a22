"""The page: its head, the warnings, the sections in order; and writing it, whole or not at all.

It has one style sheet and one small script of its own, and asks nothing of any server.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sharespace.errors import OptionError, SharespaceError
from sharespace.files import refuse_in_store, write_file
from sharespace.report.byte_sizes import sizes
from sharespace.report.facts import Facts, read_facts
from sharespace.report.html import Html, join, section, span, tag
from sharespace.report.task_map import families, variance
from sharespace.report.task_table import layers, tasks
from sharespace.report.versions import ledger, scores
from sharespace.report.warnings import Notice, notices
from sharespace.subspace.plan import judge_stored
from sharespace.words import count, human, percent

_LINKS = {
    "warnings": "Warnings",
    "sizes": "Sizes",
    "tasks": "Tasks",
    "families": "Families",
    "layers": "Layers",
    "variance": "Explained variance",
    "ledger": "Ledger",
    "scores": "Scores",
    "notes": "Notes",
}

_MARKS = {"worth it": "✓", "marginal": "~", "not worth it": "✗"}
"""A verdict is known without its colour, too."""

_DOCTYPE = "<!doctype html>\n"

_GENERATOR = tag("meta", name="generator", content="sharespace")
"""The mark by which an earlier report is known: nothing else is ever overwritten."""

_MARK_WITHIN = 4096
"""The mark stands in this many first bytes of a report; only the policy is before it."""


def render(facts: Facts) -> str:
    """The report as one HTML document; the same facts give the same text."""
    given = notices(facts)
    sections = {
        "warnings": warnings(given),
        "sizes": sizes(facts),
        "tasks": tasks(facts),
        "families": families(facts),
        "layers": layers(facts),
        "variance": variance(facts),
        "ledger": ledger(facts),
        "scores": scores(facts),
        "notes": notes(given),
    }
    body = tag(
        "body",
        header(facts),
        _links([name for name, part in sections.items() if part]),
        tag("main", list(sections.values())),
        _footer(),
        tag("script", Html(_resource("page.js"))),
    )
    return _DOCTYPE + tag("html", _head(facts), body, lang="en") + "\n"


def _head(facts: Facts) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        # The page asks nobody for anything, and runs no script but its own, whatever is in it.
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        _GENERATOR,
        tag("title", f"{facts.name} — Share model, version {facts.version}"),
        tag("style", Html(_resource("page.css"))),
    )


def _policy() -> str:
    # Hashes instead of 'unsafe-inline': markup that slipped in with a name could not run.
    digests = {
        kind: base64.b64encode(hashlib.sha256(_resource(name).encode()).digest()).decode()
        for kind, name in (("script", "page.js"), ("style", "page.css"))
    }
    allowed = "; ".join(f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _resource(name: str) -> str:
    return files("sharespace.report").joinpath(name).read_text(encoding="utf-8")


def _links(there: Sequence[str]) -> Html:
    links = [tag("a", _LINKS[name], href=f"#{name}") for name in there]
    return tag("nav", join(links), aria_label="Sections")


def _footer() -> Html:
    return tag(
        "footer",
        tag(
            "p",
            "Made by sharespace from the stored version alone; it asks no server for anything. "
            "An error here is an error of the weights: what it means for a score depends on the "
            "task, so measure that too.",
        ),
    )


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written."""

    path: Path
    bytes: int
    version: int
    """Version of the Share model that it is about."""
    notices: tuple[Notice, ...]
    """What it warns of."""


def write_report(
    share: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    version: int | None = None,
    overwrite: bool = False,
) -> WrittenReport:
    """Write the report of a stored Share model.

    Args:
        share: the store.
        out: a new file.
        version: an earlier version's number; None: the current one.
        overwrite: replace an earlier report that is there; nothing else is ever replaced.

    Raises:
        OptionError: there is something else than a report at ``out``, or a report that is not to
            be overwritten; it lies in a Share model; or it cannot be written.
        StoreNotFoundError, CorruptStoreError, SchemaVersionError: see ``sharespace.errors``.
    """
    target = Path(out)
    try:
        _refuse(target, overwrite)
        facts = read_facts(share, version)
        data = render(facts).encode()
        write_file(target, data)
    except SharespaceError:
        raise
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise OptionError(str(target), why, "Check the path") from error
    return WrittenReport(target, len(data), facts.version, notices(facts))


def _refuse(target: Path, overwrite: bool) -> None:
    """Before any work is done.

    Raises:
        OptionError: nothing may be written there.
        OSError: it can't be looked at.
    """
    if target.is_dir():
        raise OptionError(str(target), "is a directory", "Name a file, for example report.html")
    if not target.parent.is_dir():
        raise OptionError(str(target), "its directory is not there", "Make it first")
    refuse_in_store(target)
    if not os.path.lexists(target):
        return
    if not overwrite:
        why = "is there already"
        raise OptionError(str(target), why, "Give another one, or overwrite it (--overwrite)")
    if not _is_report(target):
        why = "is there already and no report; only an earlier report is overwritten"
        raise OptionError(str(target), why, "Give another path, or move it away yourself")


def _is_report(path: Path) -> bool:
    """Whether a file was written by ``write_report``; a link or a device never was."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        start = file.read(_MARK_WITHIN)
    return start.startswith(_DOCTYPE.encode()) and str(_GENERATOR).encode() in start


def header(facts: Facts) -> Html:
    """What it is, in one look."""
    base = tag("strong", facts.base or "a base model that is not stated")
    made = f"version {facts.version}, {facts.created.replace('T', ' ').replace('Z', ' UTC')}"
    tiles = [
        _tile("tasks", f"{len(facts.tasks):,}", f"on {count(len(facts.layers), 'layer')}"),
        _tile("dimension k", span(facts.k), _how(facts)),
        _tile("on disk", human(facts.file_bytes.total), _against(facts)),
        _tile("largest bound", percent(_largest(facts)), "on a task's relative error"),
    ]
    return tag(
        "header",
        tag("p", "Share model", class_="kicker"),
        tag("h1", facts.name),
        tag("p", "of ", base, f" — {made}", class_="made"),
        verdict(facts),
        tag("dl", tiles, class_="tiles"),
    )


def _how(facts: Facts) -> str:
    budget = facts.settings.budget
    limit = "" if budget is None else f", budget {human(budget)}"
    return f"method {facts.settings.method}, {facts.dtype}{limit}"


def _tile(name: str, value: str, note: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", note)))


def _against(facts: Facts) -> str:
    sizes = facts.file_bytes
    if not sizes.adapters:
        return "no adapters to compare with"
    return f"{sizes.total / sizes.adapters:.0%} of {human(sizes.adapters)} of adapters"


def _largest(facts: Facts) -> float:
    return max((t.fidelity.bound for t in facts.tasks), default=0.0)


def warnings(given: tuple[Notice, ...]) -> Html | str:
    """What needs attention, each with what to do; nothing where all is well."""
    serious = [_notice(n) for n in given if n.level == "serious"]
    if not serious:
        return ""
    return section("warnings", "Warnings", tag("ul", serious, class_="notices"))


def notes(given: tuple[Notice, ...]) -> Html | str:
    """What is good to know, each with what to do."""
    quiet = [_notice(n) for n in given if n.level != "serious"]
    return section("notes", "Notes", tag("ul", quiet, class_="notices")) if quiet else ""


def verdict(facts: Facts) -> Html:
    """Whether it is worth it, in one sentence and a colour."""
    sizes, kept = facts.file_bytes, {t.name: t.fidelity for t in facts.tasks}
    judged = judge_stored(sizes.total, sizes.adapters, kept)
    mark = tag("span", _MARKS[judged.verdict], class_="mark", aria_hidden="true")
    reason = f"{judged.reason[0].upper()}{judged.reason[1:]}."
    style = f"verdict {judged.verdict.replace(' ', '-')}"
    return tag(
        "div", mark, tag("p", tag("b", f"{judged.verdict.capitalize()}. "), reason), class_=style
    )


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
