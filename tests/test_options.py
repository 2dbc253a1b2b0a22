"""Options are checked where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from sharespace.errors import OptionError
from sharespace.options import check_options, option


@dataclass(frozen=True)
class Settings:
    k: int | None = option(None, least=1)
    rate: float = option(0.5, above=0, most=1)
    method: Literal["joint", "share"] = option("joint")
    name: str = option("x")
    flag: bool = option(False)

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    "given",
    [
        {"k": 0},
        {"k": 2.5},
        {"k": "16"},
        {"k": True},
        {"rate": 0},
        {"rate": 1.5},
        {"rate": math.nan},
        {"rate": "0.5"},
        {"method": "bogus"},
        {"name": 3},
        {"flag": 1},
        {"rate": None},
    ],
    ids=str,
)
def test_a_value_outside_is_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [{"k": None}, {"k": 1}, {"k": np.int64(3)}, {"rate": 1}, {"rate": 1e-9}, {"method": "share"}],
    ids=str,
)
def test_a_value_inside_is_taken(given: dict[str, object]) -> None:
    ((name, value),) = given.items()
    assert getattr(Settings(**given), name) == value  # type: ignore[arg-type]
