"""Hostile and damaged input for ten minutes: ``make fuzz``, or ``python -m fuzz`` in tests/.

A round has 2,000 adapters, 500 files of PyTorch, 500 contributions, 300 kills and 1,000 requests to
a server. Rounds are run until the minutes are over, the first one to its end; each has a seed of
its own, which is printed. What broke a law is printed with the command that runs it again alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from fuzz.adapter_trials import adapter_trial, bin_trial
from fuzz.request_trials import RequestTrials, request_trials
from fuzz.store_trials import BAD_ONES, gather_trial, kill_trial
from fuzz.trials import Tally, Trial, run_trials

TRIALS = {
    "adapters": 2000,
    "bins": 500,
    "contributions": -(-500 // BAD_ONES),
    "kills": 300,
    "requests": 1000,
}
"""Trials of a round; one of contributions has several of them."""

ADMIN_TOKEN = "of-the-fuzz-run"
_WITHOUT_SERVER: dict[str, Trial] = {
    "adapters": adapter_trial,
    "bins": bin_trial,
    "contributions": gather_trial,
    "kills": kill_trial,
}


class _Log:
    """The log of a process, in parts: each call gives what is new."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open(encoding="utf-8", errors="surrogateescape")

    def __call__(self) -> str:
        return self._stream.read()


@contextmanager
def served(folder: Path) -> Iterator[RequestTrials]:
    """Trials of a process of ``sharespace serve`` with a tiny language model and three tasks."""
    from serve.conftest import TASKS, save_llama, tasks_of

    llama, store, log = save_llama(folder / "llama"), folder / "s.share", folder / "log"
    tasks_of(llama).save(store)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = ["serve", str(store), "--base", str(llama), "--name", "base", "--port", str(port)]
    environment = {**os.environ, "SHARESPACE_ADMIN_TOKEN": ADMIN_TOKEN}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sharespace", *words],
            stdout=stream, stderr=stream, env=environment,
        )  # fmt: skip
    try:
        _await_ready(address, process)
        with request_trials(address, TASKS, _Log(log), ADMIN_TOKEN) as trials:
            yield trials
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _await_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("the server did not start")
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("the server did not start in time")


def run_kind(kind: str, numbers: range, seed: str, folder: Path) -> Tally:
    """Some trials of one kind."""
    if kind in _WITHOUT_SERVER:
        return run_trials(kind, _WITHOUT_SERVER[kind], numbers, seed, folder)
    place = folder / f"served-{seed}"
    place.mkdir()
    with served(place) as trials:
        return run_trials(kind, trials, numbers, seed, folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="begin rounds for so long")
    parser.add_argument("--seed", default=None, help="of the first round; default: the time")
    parser.add_argument("--kind", choices=TRIALS, default=None, help="this kind of trials alone")
    parser.add_argument("--trial", type=int, default=None, help="this trial of the kind alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of a round")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # torch's own, of the strange tensors that are made here.
    warnings.simplefilter("ignore", UserWarning)
    first = str(int(time.time())) if options.seed is None else options.seed
    began, failures, number = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while not number or time.monotonic() - began < 60 * options.minutes:
            seed = first if not number else f"{first}.{number}"
            print(f"round {number + 1}, seed {seed}", flush=True)
            for kind in [options.kind] if options.kind else TRIALS:
                numbers = range(max(round(TRIALS[kind] * options.share), 1))
                if options.trial is not None:
                    numbers = range(options.trial, options.trial + 1)
                tally = run_kind(kind, numbers, seed, Path(folder))
                print(f"  {tally}", flush=True)
                for failure in tally.failures:
                    print(f"BROKEN LAW, again with: {failure}", flush=True)
                failures += len(tally.failures)
            number += 1
            if options.trial is not None:
                break
    print(f"{number} rounds in {(time.monotonic() - began) / 60:.1f} minutes: {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
