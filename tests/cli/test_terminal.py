"""What the terminal gets: names of strangers shown, tables whole, and never a traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from builders import update
from cli.conftest import Ran, make_adapter
from sharespace import Share
from sharespace.cli import output
from sharespace.formats import PlainLora, write_adapter
from sharespace.subspace.adapter import BaseModel

Run = Callable[..., Ran]

ESCAPE = "\x1b[31mRED\x1b]0;pwned\x07"
"""Colours the text after it, and changes the terminal's title."""

ODD_NAMES = (f"a{ESCAPE}", "line\nbreak", "\u202etxt", "[red]b[/]", "c\\", "\ud800", "")
"""Names that an earlier release may have stored."""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A Share model with odd names of tasks, a module and the base."""
    modules = {f"m{ESCAPE}": update(12, 10, 2, 1), "[b]n": update(12, 10, 2, 2)}
    for at in range(len(ODD_NAMES)):
        plain = PlainLora(modules, base=BaseModel(f"base{ESCAPE}"))
        write_adapter(tmp_path / "adapters" / f"t{at}", plain)
    share = Share.from_adapters(sorted((tmp_path / "adapters").iterdir()), k=2)
    tasks = zip(share.model.tasks.values(), ODD_NAMES, strict=True)
    model = share.model.with_tasks(task.with_name(name) for task, name in tasks if name)
    Share(model).save(tmp_path / "s")
    return tmp_path / "s"


def assert_harmless(ran: Ran) -> None:
    for text in (ran.out, ran.err):
        hidden = [c for c in text if not c.isprintable() and c != "\n"]
        assert not hidden
    assert "Traceback" not in ran.err


def test_names_do_nothing_to_the_terminal(run: Run, odd: Path, tmp_path: Path) -> None:
    first = ODD_NAMES[0]
    adapters = tmp_path / "adapters"
    for call in (
        ("info", odd, "--layers"),
        ("fidelity", odd),
        ("verify", odd),
        ("export", odd, first, tmp_path / "out"),
        ("plan", adapters / "t0", adapters / "t1", "--k", 2),
        ("init", tmp_path / "new", adapters / "t0", adapters / "t1"),
        ("merge", odd, adapters / "t6"),
        ("report", odd, "-o", tmp_path / "r.html"),
        ("submit", adapters / "t3", tmp_path / "inbox"),
        ("gather", odd, tmp_path / "inbox"),
        ("rename", odd, first, "plain"),
        ("remove", odd, ODD_NAMES[1]),
        ("history", odd),
    ):
        ran = run(*call)
        assert ran.code == 0, (call, ran.err)
        assert_harmless(ran)
        assert not ran.err
    shown = run("info", odd).out
    assert r"m\x1b[31mRED" in run("info", odd, "--layers").out
    assert r"base\x1b[31mRED\x1b]0;pwned\x07" in shown
    assert r"\u202etxt" in shown
    assert "[red]b[/]" in shown


def test_nor_do_errors(run: Run, odd: Path, adapters: Path, tmp_path: Path) -> None:
    unknown = f"no{ESCAPE}"
    make_adapter(tmp_path / f"broken{ESCAPE}", 1)
    (tmp_path / f"broken{ESCAPE}" / "adapter_config.json").write_text("{")
    for call in (
        ("export", odd, unknown, tmp_path / "out"),
        ("remove", odd, unknown),
        ("rename", odd, unknown, "x"),
        ("merge", odd, adapters / "rte"),
        ("init", tmp_path / "new", tmp_path / f"broken{ESCAPE}"),
        ("info", tmp_path / unknown),
        ("gather", odd, tmp_path / unknown),
        ("run", tmp_path / f"{unknown}.yaml"),
    ):
        ran = run(*call)
        assert ran.code == 2, call
        assert_harmless(ran)
        assert len(ran.err.splitlines()) == 1, ran.err


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "names",
    [
        ("x" * 70, "y" * 200),
        ("customer-support-english-2026-01-adapter", "customer-support-english-2026-02-adapter"),
        ("a-long-name-" + "日本語" * 20, "a-long-name-" + "日本語" * 21),
    ],
)
def test_long_names_lose_their_middles_and_figures_stay_whole(
    names: tuple[str, str],
    width: int,
    run: Run,
    adapters: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share = tmp_path / "s"
    named = [
        f"{name}={adapters / folder}" for name, folder in zip(names, ("rte", "mrpc"), strict=True)
    ]
    assert run("init", share, *named, adapters / "sst2").code == 0
    # Not "width": what the property says afterwards would stay, whatever the terminal is.
    monkeypatch.setattr(output._console, "_width", width)
    for call in (("info", share), ("fidelity", share)):
        lines = run(*call).out.splitlines()
        head = next(at for at, line in enumerate(lines) if line.startswith("task"))
        rows = [line for line in lines[head + 1 :] if line and not line.startswith((" ", "The"))]
        rows = rows[:3]
        assert len({row.split()[0] for row in rows}) == 3, "names stay distinguishable"
        for row in rows:
            assert cell_len(row) <= width
            assert len(row.split()) >= 5, "a row is one line, with each of its figures"
        assert all("…" in (shown := row.split()[0]) or shown in (*names, "sst2") for row in rows)


def test_build_ends_with_a_verdict_and_what_to_run_next(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    built = run("init", tmp_path / "s", f"{adapters}/*", "--k", 1).out.splitlines()
    assert built[-2].startswith("Verdict: not worth it, because it ")
    assert built[-1].startswith("Next: sharespace ")
    merged = run("merge", tmp_path / "s", f"again={adapters / 'rte'}").out.splitlines()
    assert merged[-2].startswith("Verdict: ")
    assert merged[-1].startswith("Next: ")
    planned = run("plan", f"{adapters}/*", "--k", 2).out.splitlines()
    assert planned[-2].startswith("Verdict: ")
    assert planned[-1].startswith("Next: sharespace plan ADAPTER... --budget ")


def test_help_shows_the_verbs_in_groups(run: Run) -> None:
    shown = run("--help").out
    for group in ("Build", "Learn", "Serve", "Inspect", "Operate"):
        assert f"─ {group} ─" in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_behind_standard_output(
    run: Run, adapters: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert run("init", tmp_path / "s", adapters / "rte").code == 0
    command = [sys.executable, "-m", "sharespace", "info", str(tmp_path / "s"), *options]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "sharespace: standard output: it cannot be written (No space left on device)"
    ]


def test_a_terminal_of_another_encoding(run: Run, adapters: Path, tmp_path: Path) -> None:
    assert run("init", tmp_path / "s", f"日本語={adapters / 'rte'}").code == 0
    command = [sys.executable, "-m", "sharespace", "info", str(tmp_path / "s"), "--layers"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert r"\u65e5\u672c\u8a9e" in ran.stdout


def test_an_error_of_the_system_is_one_line(
    run: Run, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("init", tmp_path / "s", adapters / "rte").code == 0

    def failing(*_arguments: object) -> None:
        raise OSError(5, "Input/output error", f"objects/{ESCAPE}")

    monkeypatch.setattr("sharespace.store.checkout", failing)
    ran = run("info", tmp_path / "s")
    assert ran.code == 2
    assert_harmless(ran)
    assert ran.err.startswith(r"sharespace: objects/\x1b[31mRED")
    assert len(ran.err.splitlines()) == 1


def test_a_closed_standard_output_is_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m sharespace --version >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
