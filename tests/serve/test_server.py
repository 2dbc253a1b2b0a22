"""The process ``sharespace serve``: starts, answers, and leaves in good order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from serve.conftest import ADMIN
from sharespace import Share
from sharespace.errors import SharespaceError
from sharespace.serve.process import ServeSettings, serve


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(*arguments: str) -> subprocess.Popen[str]:
    program = "from sharespace.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "serve", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SHARESPACE_ADMIN_TOKEN": ADMIN, "OMP_NUM_THREADS": "1"},
    )


def test_from_start_to_sigterm(llama: Path, texts: Share, tmp_path: Path) -> None:
    store, port = tmp_path / "s.share", free_port()
    Share(texts.model).save(store)
    with command(str(store), "--base", str(llama), "--name", "tiny", "--port", str(port)) as server:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                if httpx.get(f"{address}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None, server.communicate()
                time.sleep(0.1)
        models = httpx.get(f"{address}/v1/models").json()["data"]
        assert [m["id"] for m in models] == ["tiny", "a", "b", "c"]
        body = {"model": "a", "prompt": "x", "max_tokens": 3}
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=30).status_code == 200
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert server.returncode in (0, -signal.SIGTERM), log
    assert "Traceback" not in log


def test_what_is_refused_before_it_listens(
    llama: Path, bert: Path, texts: Share, tmp_path: Path
) -> None:
    store = tmp_path / "s.share"
    Share(texts.model).save(store)
    for options, said in (
        (ServeSettings(), "does not say which"),
        (ServeSettings(base=str(llama), name="a"), "is named as the base model"),
        (ServeSettings(base=str(bert)), "in this model"),
        (ServeSettings(base=str(llama), device="nowhere"), "device 'nowhere'"),
    ):
        with pytest.raises(SharespaceError, match=said):
            serve(store, options)
