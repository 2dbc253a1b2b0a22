"""The page: sections in order, one style sheet and one small script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from sharespace.page.facts import Facts
from sharespace.page.markup import Html, join, tag
from sharespace.page.sections.layers import layers
from sharespace.page.sections.ledger import ledger
from sharespace.page.sections.overview import header, warnings
from sharespace.page.sections.scores import scores
from sharespace.page.sections.similarity import similarity
from sharespace.page.sections.sizes import sizes
from sharespace.page.sections.tasks import tasks
from sharespace.page.sections.variance import variance
from sharespace.page.warnings import notices

_LINKS = {
    "warnings": "Warnings",
    "tasks": "Tasks",
    "layers": "Layers",
    "similarity": "Similarity",
    "variance": "Explained variance",
    "sizes": "Sizes",
    "ledger": "Ledger",
    "scores": "Scores",
}


def render(facts: Facts) -> str:
    """The report as one HTML document; the same facts give the same text."""
    parts = [
        warnings(notices(facts)),
        tasks(facts),
        layers(facts),
        similarity(facts),
        variance(facts),
        sizes(facts),
        ledger(facts),
        scores(facts),
    ]
    body = tag(
        "body",
        header(facts),
        _links(facts),
        tag("main", parts),
        _footer(),
        tag("script", Html(_resource("page.js"))),
    )
    return "<!doctype html>\n" + tag("html", _head(facts), body, lang="en") + "\n"


def _head(facts: Facts) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        # The page asks nobody for anything, and runs no script but its own, whatever is in it.
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="sharespace"),
        tag("title", f"{facts.name} — Share model, version {facts.version}"),
        tag("style", Html(_resource("page.css"))),
    )


def _policy() -> str:
    digests = {
        kind: base64.b64encode(hashlib.sha256(_resource(name).encode()).digest()).decode()
        for kind, name in (("script", "page.js"), ("style", "page.css"))
    }
    allowed = "; ".join(f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _resource(name: str) -> str:
    return files("sharespace.page").joinpath(name).read_text(encoding="utf-8")


def _links(facts: Facts) -> Html:
    shown = {k: v for k, v in _LINKS.items() if k != "scores" or facts.scores is not None}
    links = [tag("a", text, href=f"#{name}") for name, text in shown.items()]
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
