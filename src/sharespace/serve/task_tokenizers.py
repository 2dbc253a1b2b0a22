"""A task's own tokenizer, chat template and stop tokens, where its adapter brought them.

A conversation is written by the template that the task was trained with, and an answer ends at the
tokens that it was taught to end with; the base model's serve a task that brought none.
"""

from __future__ import annotations

import copy
import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.extras import require
from sharespace.formats.companions import write_files_of
from sharespace.formats.engines import requested_files
from sharespace.protocols import Tokenizer
from sharespace.share import Share
from sharespace.store.stored_model import StoredFiles

_TEMPLATE = "chat_template.jinja"
_GENERATION = "generation_config.json"
# Without one of these there is no tokenizer, but perhaps a template for that of the base model.
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json")

_AT_HAND = 64
"""Tokenizers in memory; each takes some megabytes."""


@dataclass(frozen=True, eq=False)
class TaskTokenizer:
    """What a task's requests are read and answered with."""

    tokenizer: Tokenizer
    ends: frozenset[int]
    """Tokens that end an answer."""


class TaskTokenizers:
    """Loads tokenizers when they are first asked for; tasks of equal files share one.

    Args:
        base: of the base model, for requests without a task and tasks without files.
        tokens: rows of the base model's embeddings.
    """

    def __init__(self, base: TaskTokenizer, tokens: int) -> None:
        self._base = base
        # Some models have fewer embeddings than their own tokenizer has tokens.
        self._tokens = max(tokens, len(base.tokenizer))
        self._loaded: dict[object, tuple[object, TaskTokenizer]] = {}
        """By content; of a task that is in memory only by its files, which are held beside."""
        self._lock = threading.Lock()

    def of(self, share: Share, task: str | None) -> TaskTokenizer:
        """The tokenizer of a task or a mixture; the base model's where it has none.

        Raises:
            TaskNotFoundError: there is no such task.
            MismatchError: it cannot be loaded, has tokens that the base model has no embeddings
                for, or the tasks of a mixture have different ones.
        """
        if task is None:
            return self._base
        files = requested_files(share.model, task)
        if not files:
            return self._base
        key = files.stored.ref.sha256 if isinstance(files, StoredFiles) else id(files)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = files, self._load(f"task {task!r}", files)
                for old in list(self._loaded)[:-_AT_HAND]:
                    del self._loaded[old]
            return self._loaded[key][1]

    def _load(self, what: str, files: Mapping[str, Tensor]) -> TaskTokenizer:
        tokenizer = self._base.tokenizer
        if any(name in files for name in _TOKENIZER):
            tokenizer = _tokenizer(what, files)
        elif _TEMPLATE in files:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = _text(files[_TEMPLATE])
        if len(tokenizer) > self._tokens:
            raise MismatchError(
                what,
                f"its tokenizer has {len(tokenizer)} tokens, and the served base model embeddings "
                f"for {self._tokens}",
                "Serve a base model that was resized for them (resize_token_embeddings), or export "
                "the task and use PEFT",
            )
        return TaskTokenizer(tokenizer, self._ends(tokenizer, files))

    def _ends(self, tokenizer: Tokenizer, files: Mapping[str, Tensor]) -> frozenset[int]:
        named: object = None
        if _GENERATION in files:
            try:
                named = json.loads(_text(files[_GENERATION])).get("eos_token_id")
            except (ValueError, AttributeError):
                named = None  # Not what transformers writes: as if it were not there.
        # A task that says nothing may still end as the base model does, whose vocabulary it has.
        return _whole_numbers(named) or _whole_numbers(tokenizer.eos_token_id) | self._base.ends


def _tokenizer(what: str, files: Mapping[str, Tensor]) -> Tokenizer:
    transformers = require("transformers", "serve")
    with tempfile.TemporaryDirectory() as folder:
        write_files_of(Path(folder), files)
        try:
            # Code that came with an adapter is never run.
            loaded: Tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False
            )
        except Exception as error:
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise MismatchError(
                what, f"its tokenizer cannot be loaded ({first[:200]})", "Export it and use PEFT"
            ) from error
    return loaded


def _text(data: Tensor) -> str:
    return data.numpy().tobytes().decode("utf-8", "replace")


def _whole_numbers(value: object) -> frozenset[int]:
    """One number, or a list of numbers, as they stand in configurations."""
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool))
