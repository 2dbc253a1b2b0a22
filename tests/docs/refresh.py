"""Put the output that commands print now under them: ``python -m docs.refresh`` in tests/.

Blocks with ``...`` are shortened by hand and stay as they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from docs.pages import Block, blocks, pages, seen, tabs
from docs.running import Ran, Reader
from docs.samples import make


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        samples.mkdir()
        make(samples)
        for page in pages():
            found = blocks(page)
            outputs: dict[Block, list[Ran]] = {}
            for tab in tabs(found):
                desk = Path(folder) / "desk"
                shutil.copytree(samples, desk)
                os.chdir(desk)
                for ran in Reader().follow(seen(found, tab)):
                    outputs.setdefault(ran.block, []).append(ran)
                os.chdir(folder)
                shutil.rmtree(desk)
            _write(page, outputs)


def _write(page: Path, outputs: dict[Block, list[Ran]]) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in sorted(outputs, key=lambda b: -b.line):
        ran = outputs[block]
        if all(r.shown is None for r in ran) or "..." in block.text.splitlines():
            continue
        text = _text(block, ran)
        start = block.line - 1
        indented = [block.indent + x if x else "" for x in text]
        lines[start : start + len(block.text.splitlines())] = indented
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text(block: Block, ran: list[Ran]) -> list[str]:
    if block.language == "text":
        return ran[0].printed.rstrip().splitlines()
    text: list[str] = []
    typed = [line for line in block.text.splitlines() if line.startswith("$ ")]
    # Commands over several lines are not rewritten: mark their output with "...".
    # A block outside the tabs runs once per tab; the first run counts.
    for line, now in zip(typed, ran[: len(typed)], strict=True):
        text.append(line)
        if now.shown is not None:
            text += [x.rstrip() for x in now.printed.rstrip().splitlines()]
    return text


if __name__ == "__main__":
    main()
