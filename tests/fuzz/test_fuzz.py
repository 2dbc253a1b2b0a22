"""The first trials of ``make fuzz``: hostile and damaged input breaks no law."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.__main__ import ADMIN_TOKEN
from fuzz.adapter_trials import adapter_trial, bin_trial
from fuzz.request_trials import RequestTrials, request_trials
from fuzz.store_trials import gather_trial, kill_trial
from fuzz.trials import Tally, Trial, run_trials
from serve.conftest import TASKS, engine_of, save_llama, server_of, tasks_of

SEED = "tests"


def assert_lawful(tally: Tally, *endings: str) -> None:
    assert not tally.failures, "\n".join(tally.failures)
    assert set(endings) <= set(tally.endings), tally


# torch's own, of the strange tensors that are made here.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "trial", "count", "endings"),
    [
        ("adapters", adapter_trial, 40, ["taken", "refused"]),
        ("bins", bin_trial, 20, ["taken", "refused"]),
        ("contributions", gather_trial, 3, ["taken", "set aside"]),
        ("kills", kill_trial, 7, []),
    ],
)
def test_some_trials(
    kind: str, trial: Trial, count: int, endings: list[str], tmp_path: Path
) -> None:
    assert_lawful(run_trials(kind, trial, range(count), SEED, tmp_path), *endings)


class _Log(logging.Handler):
    """What the server logs, in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def __call__(self) -> str:
        lines, self._lines = self._lines, []
        return "\n".join(lines)


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[RequestTrials]:
    """Trials of a server in this process."""
    llama = save_llama(tmp_path / "llama")
    share, log = tasks_of(llama), _Log()
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "sharespace")]
    with (
        engine_of(llama, share) as engine,
        server_of(engine, admin_token=ADMIN_TOKEN) as address,
    ):
        for logger in loggers:
            logger.addHandler(log)
        with request_trials(address, TASKS, log, ADMIN_TOKEN) as trials:
            yield trials
        for logger in loggers:
            logger.removeHandler(log)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_some_requests(trials: RequestTrials, tmp_path: Path) -> None:
    tally = run_trials("requests", trials, range(60), SEED, tmp_path)
    assert_lawful(tally, "status 200", "status 400", "raw")
