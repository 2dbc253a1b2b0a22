"""What is taken from the Hugging Face Hub: adapters, stores, and a base model's ``config.json``.

A source is ``user/repo`` or ``user/repo@revision``. Only files of known names are downloaded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from sharespace.errors import AdapterError
from sharespace.formats.weights_file import SUFFIXES

HUB_ID = re.compile(r"([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?")
# By name, never a wild card: a repository that is no adapter may hold a model of many gigabytes.
FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    # Of the tokenizer and the processor, which belong to the adapter where it has them.
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "tokenizer.model", "spiece.model"),
    *("tokenizer.model.v3", "sentencepiece.model", "sentencepiece.bpe.model", "source.spm"),
    *("target.spm", "tekken.json", "bpe.codes", "dict.txt", "normalizer.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("processor_config.json", "preprocessor_config.json", "image_processor_config.json"),
    *("video_preprocessor_config.json", "additional_chat_templates/tool_use.jinja"),
]


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub."""

    user: str
    """Empty for the oldest models, ``gpt2`` for one."""
    name: str
    revision: str | None = None

    @property
    def repository(self) -> str:
        return f"{self.user}/{self.name}" if self.user else self.name

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def parse_hub_id(source: str | os.PathLike[str]) -> HubId | None:
    """The Hub id that a source is; None where it is a path that exists, or can't be an id."""
    text = os.fspath(source)
    match = HUB_ID.fullmatch(text)
    # "./adapter" and "../adapter" have the form of an id, and so has "folder/weights.safetensors".
    if match is None or match[1] in (".", "..") or text.endswith(SUFFIXES):
        return None
    if os.path.lexists(text):
        return None
    return HubId(match[1], match[2], match[3])


def download(hub: HubId) -> Path:
    """A local folder with the repository's adapter files, from the cache where they are there.

    Raises:
        AdapterError: no such repository or revision, no access, or no connection.
    """
    return _snapshot(hub, FILES)


def _snapshot(hub: HubId, files: list[str]) -> Path:
    try:
        folder = snapshot_download(hub.repository, revision=hub.revision, allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdapterError(
            str(hub),
            f"neither a path that exists nor a repository that the Hub gives ({reason})",
            "Check the name, your token and the connection",
        ) from error
    return Path(folder)


def base_model_id(name: str, revision: str | None = None) -> HubId | None:
    """The Hub id that a base model's name is, also without a user; None where it can't be one.

    Args:
        name: ``user/repo``, ``user/repo@revision`` or ``repo``.
        revision: where the name holds none.
    """
    hub = parse_hub_id(name)
    if hub is None and re.fullmatch(r"\w[\w.-]*", name):
        hub = HubId("", name)
    return hub and replace(hub, revision=hub.revision or revision)


def download_config(hub: HubId) -> Path:
    """A local copy of a model's ``config.json``.

    Raises:
        AdapterError: no such repository or revision, no access, or no connection.
    """
    return _snapshot(hub, ["config.json"]) / "config.json"


STORE_FILES = ["share.json", "versions/*.json", "objects/*.safetensors"]


def download_store(source: str) -> Path:
    """A local folder with a Share model's store from the Hub, or the path itself.

    Raises:
        AdapterError: no such repository or revision, no access, or no connection.
    """
    hub = parse_hub_id(source)
    if hub is None:
        return Path(source).absolute()
    return _snapshot(hub, STORE_FILES)
