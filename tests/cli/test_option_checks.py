"""A mistake in an option is one OptionError at once, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.conftest import Ran
from sharespace import AdapterError, OptionError, Share

Run = Callable[..., Ran]

# Nothing is there, so reading it would be an AdapterError.
NOWHERE = "nowhere/adapter"

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"method": "bogus"}, "method='bogus'"),
    "p below 1": ({"p": -1}, "p=-1"),
    "p of 0": ({"p": 0}, "p=0"),
    "p as text": ({"p": "8"}, "p='8'"),
    "k of 0": ({"k": 0}, "k=0"),
    "k with a fraction": ({"k": 2.5}, "k=2.5"),
    "k as text": ({"k": "16"}, "k='16'"),
    "k of a pattern": ({"k": {"*": 2.5}}, "k=2.5"),
    "k of a side": ({"k": {"*": (4, 0)}}, "k=0"),
    "k of a pattern left out": ({"k": {"*": None}}, "k=None"),
    "a truth value as k": ({"k": True}, "k=True"),
    "two rules": ({"k": 4, "variance": 0.9}, "k and variance"),
    "variance above 1": ({"variance": 1.5}, "variance=1.5"),
    "variance that is no number": ({"variance": float("nan")}, "variance=nan"),
    "error of 0": ({"error": 0.0}, "error=0.0"),
    "budget of 0": ({"budget": 0}, "budget=0"),
    "budget as text": ({"budget": "2MB"}, "budget='2MB'"),
    "unknown dtype": ({"dtype": "int8"}, "dtype 'int8'"),
    "a dtype for whole numbers": ({"dtype": torch.int8}, "dtype 'int8'"),
    "centred with joint": ({"centred": True}, "centred"),
    "seed as text": ({"seed": "0"}, "seed='0'"),
    "memory of 0": ({"memory": 0}, "memory=0"),
    "memory as text": ({"memory": "2GB"}, "memory='2GB'"),
}


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.parametrize("verb", ["from_adapters", "plan"])
def test_python_refuses_it_before_an_adapter_is_read(verb: str, case: str) -> None:
    options, named = MISTAKES[case]
    if verb == "plan" and "memory" in options:
        options = {**options, "k": 2}
    with pytest.raises(OptionError) as raised:
        getattr(Share, verb)(NOWHERE, **options)
    assert named in str(raised.value)
    assert raised.value.remedy


def test_good_options_get_as_far_as_reading() -> None:
    with pytest.raises(AdapterError):
        Share.from_adapters(NOWHERE, k={"*": (4, 8)}, dtype="float16", p=2, memory=10**6)


@pytest.mark.parametrize("cap", [0, -1, 2.5, "4", True])
def test_a_merge_refuses_a_cap_before_an_adapter_is_read(cap: Any, adapters: Path) -> None:
    share = Share.from_adapters(adapters / "sst2", k=2)
    with pytest.raises(OptionError, match="cap="):
        share.merge(NOWHERE, cap=cap)


def test_a_dtype_may_be_named(adapters: Path) -> None:
    share = Share.from_adapters(adapters / "sst2", k=2, dtype="float16")
    assert share.model.dtype == torch.float16


ON_THE_COMMAND_LINE = {
    "unknown method": (["--method", "bogus"], "bogus"),
    "p below 1": (["--p", "-1"], "p=-1"),
    "p of 0": (["--p", "0"], "p=0"),
    "k of 0": (["--k", "0"], "k=0"),
    "k with a fraction": (["--k", "2.5"], "--k"),
    "k as text": (["--k", "many"], "--k"),
    "two rules": (["--k", "4", "--variance", "0.9"], "k and variance"),
    "variance above 1": (["--variance", "1.5"], "variance=1.5"),
    "unknown dtype": (["--dtype", "int8"], "int8"),
    "centred with joint": (["--centred"], "centred"),
    "no size": (["--budget", "much"], "much"),
    "memory of 0": (["--memory", "0"], "memory=0"),
}


@pytest.mark.parametrize("case", ON_THE_COMMAND_LINE)
@pytest.mark.parametrize("verb", ["init", "plan"])
def test_the_command_line_refuses_it_before_an_adapter_is_read(
    run: Run, tmp_path: Path, verb: str, case: str
) -> None:
    options, named = ON_THE_COMMAND_LINE[case]
    if verb == "plan" and "--memory" in options:
        pytest.skip("plan has no --memory")
    where = [tmp_path / "new"] if verb == "init" else []
    ran = run(verb, *where, NOWHERE, *options)
    assert ran.code == 2
    assert ran.out == ""
    assert named in ran.err
    assert "nowhere" not in ran.err
    assert not list(tmp_path.iterdir())
