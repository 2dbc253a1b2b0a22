"""One page of all results: ``python -m experiments.page`` writes docs/results.md.

Everything on it is taken from files beside the experiments: ``results/claims.json`` and
``results/tables.md``, which ``summarise`` makes of results files, and the README's own account.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments import EXPERIMENTS
from experiments.harness.markdown import table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
WIDTH = 120

HEAD = """# Results

<!-- Written by `python -m experiments.page`; change the experiments' files instead. -->

What was run here, on small real models and a CPU, beside what the paper claims (arXiv
2602.06043). Every figure is computed from results files; each experiment's README says how to run
it again, with which data, seeds and versions. "Holds" compares with the claim as it is worded;
the settings are smaller than the paper's, and the notes say where that matters.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    known = [name for name in EXPERIMENTS if _claims_file(name).is_file()]
    parts = [HEAD, "## The paper's claims, one by one", ""]
    parts += [verdict(known), "", claims_table(known), ""]
    parts += [section(name) for name in known]
    return "\n".join(parts).rstrip() + "\n"


def _claims_file(name: str) -> Path:
    return HERE / name / "results" / "claims.json"


def verdict(names: Sequence[str]) -> str:
    """How many of the claims hold."""
    verdicts = [
        claim["holds"]
        for name in names
        for claim in json.loads(_claims_file(name).read_text(encoding="utf-8"))["claims"]
    ]
    said = [f"{verdicts.count(kind)} {kind}" for kind in ("yes", "partly", "no", "not tested")]
    return f"Of {len(verdicts)} claims: {', '.join(x for x in said if not x.startswith('0 '))}."


def claims_table(names: Sequence[str]) -> str:
    """All experiments' claims in one table."""
    rows = []
    for name in names:
        content = json.loads(_claims_file(name).read_text(encoding="utf-8"))
        for c in content["claims"]:
            where = f"[{_title(name)}](#{_anchor(_title(name))})"
            rows.append([c["claim"], c["paper"], c["here"], c["holds"], where, c["note"]])
    return table("claim | paper | here | holds | experiment | note", rows)


def section(name: str) -> str:
    """One experiment: what it is, what came out, its tables."""
    readme = (HERE / name / "README.md").read_text(encoding="utf-8")
    tables = HERE / name / "results" / "tables.md"
    command = json.loads(_claims_file(name).read_text(encoding="utf-8"))["command"]
    parts = [f"## {_title(name)}", "", _introduction(readme)]
    parts += [f"Folder: `experiments/{name}`. Tables and figures: `{command}`.", ""]
    parts += [_for_docs(_part(readme, "What came out"))]
    if tables.is_file():
        parts += [_demoted(tables.read_text(encoding="utf-8"))]
    return "\n".join(parts)


def _title(name: str) -> str:
    readme = (HERE / name / "README.md").read_text(encoding="utf-8")
    return readme.partition("\n")[0].removeprefix("# ")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _introduction(readme: str) -> str:
    """From the title to the first heading or list."""
    body = readme.partition("\n")[2]
    return re.split(r"^(?:## |- |\| )", body, maxsplit=1, flags=re.MULTILINE)[0].strip() + "\n"


def _part(readme: str, title: str) -> str:
    """The text under a heading; nothing where there is no such heading."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    return match[1].strip() + "\n" if match else ""


def _for_docs(text: str) -> str:
    """Figures as the docs see them; links to files outside of the docs as plain text."""
    text = text.replace("../../docs/figures/", "figures/")
    return re.sub(r"\[([^\]]+)\]\((?!https?:|figures/|#)[^)]+\)", r"`\1`", text)


def _demoted(tables: str) -> str:
    """Headings two levels lower, and no long line of prose."""
    lines = []
    for line in tables.splitlines():
        if line.startswith("#"):
            lines.append(f"##{line}")
        elif line.startswith(("|", "![", "- ")) or len(line) <= WIDTH:
            lines.append(line)
        else:
            lines += textwrap.wrap(line, WIDTH)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    main()
