"""Names of mixtures: what they say, how they are escaped, and that no task has one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import adapter, law, update
from sharespace import Share
from sharespace.errors import OptionError
from sharespace.mixture_names import escaped, mixture_name, parse_mixture

NAMES = st.text(st.sampled_from("ab:+%25B3A é/-."), min_size=1, max_size=12)
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False)


@law(50)
@given(weights=st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=4))
def test_a_name_that_was_written_is_read_as_it_was(weights: dict[str, float]) -> None:
    assert parse_mixture(mixture_name(weights)) == weights


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("legal:0.7+medical:0.3", {"legal": 0.7, "medical": 0.3}),
        ("legal:-1", {"legal": -1.0}),
        ("legal:.5+medical:2.", {"legal": 0.5, "medical": 2.0}),
        ("a%3Ab:1+c%2bd:1+50%25:1", {"a:b": 1.0, "c+d": 1.0, "50%": 1.0}),
        ("100%:1", {"100%": 1.0}),
    ],
)
def test_what_a_mixture_says(text: str, weights: dict[str, float]) -> None:
    assert parse_mixture(text) == weights


@pytest.mark.parametrize(
    "text",
    ["legal", "legal:", ":1", "legal:1e3", "legal:nan", "legal:1+", "a:1:2", "a+b", "legal:+1", ""],
)
def test_what_is_no_mixture(text: str) -> None:
    assert parse_mixture(text) is None


@pytest.mark.parametrize("text", ["a:1+a:2", "a:1+%61:1+a:2", f"a:{'9' * 400}"])
def test_a_mixture_without_a_meaning_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"twice|weight"):
        parse_mixture(text)


@pytest.mark.parametrize("name", ["a:1", "a:1+b:2", "a:1+a:1"])
def test_no_new_task_has_a_mixtures_name(name: str) -> None:
    with pytest.raises(OptionError, match="reads as a mixture"):
        Share.from_adapters([adapter(name, update(6, 5, 2))], k=2)
    share = Share.from_adapters([adapter("a", update(6, 5, 2))], k=2)
    with pytest.raises(OptionError, match="reads as a mixture"):
        share.rename("a", name)


def test_a_name_of_no_mixture_needs_no_escape() -> None:
    assert escaped("legal/de") == "legal/de"
