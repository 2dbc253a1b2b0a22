"""Patterns for paths match as ``re`` does, and in bounded time where ``re`` does not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharespace.formats.path_patterns import Budget, PathPattern, PatternError, PatternTable

PATHS = [
    *("q", "layers.0.q", "layers.10.self_attn.q_proj", "model.layers.1.mlp.up_proj", "", "a.b\n"),
    *("encoder.layer.0.attention.self.query", "a_b.c-d.e", "x.X.9", "layers.0..q"),
]
PATTERNS = [
    *("q", "q_proj", "layers.0.q", r"layers\.0\.q", "^layers.0.q", r"layers\.\d+\..*q_proj"),
    *("(q|up)_proj", ".*mlp.*", r"[a-z_]+\.[A-Z]\.\d", r"[^.]+", r"(?:a|a_b)\.c-d\.e", "(.*)"),
    *(r"layers\.(0|1\d?)\..*", r"layers\.\d{1,2}\.\w+\.\w+", r"(?!.*mlp).*proj", r"\w*?\.q", "()+"),
    *(
        r"(a|b|\.)*",
        r"\D+",
        r"(?=model).*up_proj",
        "b$",
        r"(x\.)?X\.\S",
        r"(\w+\.){2}q",
        "|q",
        "q|",
    ),
]
EXPLOSIVE = [
    "(([a-z_.])+.)+[A-Z]([a-z])+",
    "(a*)*b",
    "(a|a)*b",
    "([a-z]+)*!",
    "(a|a)" * 40 + "!",
    ".*" * 30 + "!",
    "(.*.*)*!",
    "(a?){1000}(a{1,1000}){1000}!",
]


@pytest.mark.parametrize("text", PATTERNS)
def test_as_re_matches(text: str) -> None:
    pattern = PathPattern.parse(text)
    for path in PATHS:
        assert pattern.matches(path) == bool(re.match(rf"(.*\.)?({text})$", path)), path


@given(
    st.lists(st.sampled_from([*"ab.", "[ab]", r"\.", "(a|b.)", "(ab)?", "a*", "b+?"]), max_size=6),
    st.text("ab.", max_size=8),
)
def test_as_re_matches_whatever_is_put_together(parts: list[str], path: str) -> None:
    text = "".join(parts)
    found = bool(re.match(rf"(.*\.)?({text})$", path))
    assert PathPattern.parse(text).matches(path) == found


@pytest.mark.parametrize("text", EXPLOSIVE)
def test_what_explodes_in_re_is_matched(text: str) -> None:
    assert not PathPattern.parse(text).matches("model.encoder." + "a" * 30)


def test_many_long_paths_have_a_limit_together() -> None:
    table = PatternTable(
        dict.fromkeys([".*" * 30 + "!", "(a?){1000}(a{1,1000}){1000}!"], 1), budget=Budget(50_000)
    )
    with pytest.raises(PatternError, match="too long"):
        [table.find("a" * length) for length in range(100, 500)]


@pytest.mark.parametrize("text", [r"(a)\1", "(?<=a)b", "(?i:a)", "(", "a{2}{3}", "*", "(" * 200])
def test_what_is_not_matched_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        PathPattern.parse(text)


def test_thousands_of_patterns() -> None:
    words = ("q_proj", "k_proj", "v_proj", "o_proj")
    paths = [f"model.layers.{i}.self_attn.{word}" for i in range(1000) for word in words]
    table = PatternTable({path: i for i, path in enumerate(paths)} | {"layers.*": -1})
    assert [table.find(path) for path in paths] == list(range(len(paths)))
    assert table.find("layers.7") == -1
    assert table.find("head") is None
    with pytest.raises(PatternError, match="too long"):
        PatternTable(dict.fromkeys(map(str, range(30_000)), 1))


def test_the_first_pattern_counts() -> None:
    assert PatternTable({"self.q": 1, "q": 2}).find("self_q") == 1
    assert PatternTable({"q": 2, "self.q": 1}).find("self.q") == 2
