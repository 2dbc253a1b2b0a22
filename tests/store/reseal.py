"""Change a committed store and make its hashes right again, as a faulty writer would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sharespace.store.schema import FileRef, object_ref


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the current manifest as a JSON value."""
    head = json.loads((path / "share.json").read_bytes())
    manifest = json.loads((path / head["current"]).read_bytes())
    change(manifest)
    reseal_bytes(path, json.dumps(manifest).encode())


def reseal_bytes(path: Path, manifest: bytes) -> None:
    """Put these bytes in the place of the current manifest."""
    head = json.loads((path / "share.json").read_bytes())
    (path / head["current"]).unlink()
    digest = hashlib.sha256(manifest).hexdigest()
    number = Path(head["current"]).name.split("-")[0]
    head |= {"current": f"versions/{number}-{digest}.json", "sha256": digest}
    (path / head["current"]).write_bytes(manifest)
    (path / "share.json").write_bytes(json.dumps(head).encode())


def replace_object(
    path: Path, ref: FileRef, change: Callable[[dict[str, Tensor]], object]
) -> FileRef:
    """Change the tensors of an object, and every reference to it."""
    with safe_open(path / ref.file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path / ref.file).items()}
    change(tensors)
    save_file(tensors, path / "changed", metadata)
    new = replace_bytes(path, ref, (path / "changed").read_bytes())
    (path / "changed").unlink()
    return new


def replace_bytes(path: Path, ref: FileRef, data: bytes) -> FileRef:
    """Put these bytes in the place of an object, and change every reference to it."""
    role = ref.name.split("-")[0]
    new = object_ref(role, hashlib.sha256(data).hexdigest(), len(data))
    (path / new.file).write_bytes(data)
    head = json.loads((path / "share.json").read_bytes())
    text = (path / head["current"]).read_text()
    text = text.replace(ref.sha256, new.sha256)
    manifest = json.loads(text)
    for found in _references(manifest):
        if found["sha256"] == new.sha256:
            found["bytes"] = new.bytes
    reseal_bytes(path, json.dumps(manifest).encode())
    return new


def _references(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [ref for item in value for ref in _references(item)]
    if not isinstance(value, dict):
        return []
    inner = [ref for item in value.values() for ref in _references(item)]
    return [*inner, value] if "bytes" in value else inner
