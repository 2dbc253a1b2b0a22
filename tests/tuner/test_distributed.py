"""Two processes on one machine: what they train together is what one trains alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from sharespace import ShareConfig
from sharespace.learn import choose_directions
from tuner.spaces import mlp, points, published
from tuner.worker import TARGETS, WithLoss

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux",
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each way of distributing has trained: name -> tensor."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("worker.py")
    command = [sys.executable, "-W", "ignore", str(script)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [w.communicate(timeout=240)[1] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], "\n".join(errors)[-6000:]
    return torch.load(folder / "found.pt")


def test_directions_are_those_of_all_examples(found: Any) -> None:
    """The worker has compared the two processes with each other; here with one that has all."""
    share = published(mlp())
    model = get_peft_model(WithLoss(mlp()), ShareConfig(share=share, target_modules=TARGETS))
    choose_directions(model, [{"x": points(8)}])
    for name, value in found["directions"].items():
        mine, its = model.get_parameter(name).detach(), value
        # A frame is compared by what it spans: a direction may be turned around.
        if "_temporary" in name:
            torch.testing.assert_close(mine @ mine.mT, its @ its.mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["data parallel", "fully_shard", "FSDP"])
def test_training_in_two_processes_equals_training_in_one(found: Any, way: str) -> None:
    expected, got = found["alone"], found[way]
    assert sorted(got) == sorted(expected)
    assert len(got) == 8
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
