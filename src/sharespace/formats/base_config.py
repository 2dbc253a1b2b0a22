"""The ``config.json`` of a base model: sizes that an adapter's own files do not state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharespace.errors import AdapterError, CorruptAdapterError, OptionError
from sharespace.formats.hub import base_model_id, download_config
from sharespace.formats.weights_file import parse_object, refuse_special
from sharespace.subspace.adapter import BaseModel

CONFIG = "config.json"
NAME_IT = "Name the base model's folder or Hub id: base=..., --base"
# Older names of a size, as GPT-2's configuration has them.
OLDER = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}


@dataclass(frozen=True)
class BaseConfig:
    """A base model's configuration; only its fields, never its weights."""

    where: str
    """Named in errors."""
    fields: Mapping[str, object]

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, for example ``"llama"``."""
        return str(self.fields.get("model_type", ""))

    def size(self, name: str) -> int:
        """A whole number above 0, for example ``"num_attention_heads"``.

        Raises:
            CorruptAdapterError: the configuration has no such number.
        """
        value = self.fields.get(name, self.fields.get(OLDER.get(name, name)))
        # True is an int in Python.
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CorruptAdapterError(self.where, f"{name} is {value!r}", NAME_IT)
        return value

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.size("num_attention_heads")

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values; fewer than ``heads`` with grouped queries."""
        stated = self.fields.get("num_key_value_heads")
        return self.heads if stated is None else self.size("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        """Number of features of one head."""
        # Gemma and Qwen3 state it: their heads together are not as wide as the hidden state.
        if self.fields.get("head_dim") is not None:
            return self.size("head_dim")
        return self.size("hidden_size") // self.heads


def read_base_config(source: str | None, base: BaseModel | None) -> BaseConfig:
    """Read a base model's configuration.

    Args:
        source: a folder, or a Hub id ``user/repo`` or ``user/repo@revision``; None: ``base``.
        base: what the task states.

    Raises:
        OptionError: nobody says which base model.
        AdapterError: it can't be had, or its configuration is broken.
    """
    name, revision = source, None
    if name is None and base is not None:
        name, revision = base.id, base.revision
    if not name:
        raise OptionError("base", "the task does not state its base model", NAME_IT)
    return _read(name, _file(name, revision))


def _file(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name) / CONFIG
    hub = base_model_id(name, revision)
    if hub is None:
        raise AdapterError(name, "neither a folder nor a Hub id", NAME_IT)
    try:
        return download_config(hub)
    except AdapterError as error:
        raise AdapterError(error.what, error.why, NAME_IT) from error


def _read(name: str, path: Path) -> BaseConfig:
    try:
        refuse_special(path)
        text = path.read_bytes()
    except (OSError, CorruptAdapterError) as error:
        reason = error.why if isinstance(error, CorruptAdapterError) else error.strerror or error
        why = f"its {CONFIG} cannot be read ({reason})"
        raise AdapterError(f"base model {name}", why, NAME_IT) from error
    return BaseConfig(f"{name}, {CONFIG}", parse_object(path, text))
