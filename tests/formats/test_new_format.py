"""A format that another package brings: registered, it is read and written as any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli.conftest import Ran
from cli.conftest import run as run
from sharespace import Share, read_adapter
from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.files import export_directory
from sharespace.formats import (
    FORMATS,
    ExportOptions,
    Format,
    PlainLora,
    register_format,
    write_adapter,
)
from sharespace.formats.pairs import AdapterKeys, FactorPair, build_adapter
from sharespace.formats.weights_file import WeightsFile, write_tensors
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate

Run = Callable[..., Ran]
MODULES = {"encoder.0.q": (12, 10), "encoder.0.v": (8, 10)}


def is_wide(file: WeightsFile) -> bool:
    """The header says so."""
    return "wide_lora" in file.metadata


def read_wide(file: WeightsFile, *, name: str, source: str) -> Adapter:
    """Keys ``<module>/up`` and ``<module>/down``; scaling 1 / sqrt(rank)."""
    pairs = {}
    for module in {key.partition("/")[0] for key in file.infos}:
        down, up = f"{module}/down", f"{module}/up"
        rank = file.infos[down].shape[0]
        pairs[module] = FactorPair(down, up, 1 / math.sqrt(rank))
    return build_adapter(
        file,
        AdapterKeys(pairs, {}),
        name=name,
        format="wide",
        base=BaseModel(file.metadata["wide_lora"]),
        config={},
        source=source,
    )


def write_wide(path: Path, plain: PlainLora, options: ExportOptions) -> list[Path]:
    tensors = {}
    for module, update in plain.updates.items():
        rank = update.up.shape[1]
        tensors[f"{module}/up"] = (update.up * update.scaling * math.sqrt(rank)).contiguous()
        tensors[f"{module}/down"] = update.down.contiguous()
    base = (plain.base and plain.base.id) or ""
    with export_directory(path, overwrite=options.overwrite) as aside:
        write_tensors(aside / "any.safetensors", tensors, {"wide_lora": base})
    return [path / "any.safetensors"]


WIDE = Format("wide", is_wide, read_wide, write_wide, lambda written: ["--wide", written[0].name])


@pytest.fixture
def wide() -> Iterator[Format]:
    yield register_format(WIDE)
    del FORMATS["wide"]


def updates(seed: int) -> dict[str, LayerUpdate]:
    draw = torch.Generator().manual_seed(seed)
    return {
        module: LayerUpdate(
            torch.randn(n, 2, generator=draw), torch.randn(2, d, generator=draw), 0.5
        )
        for module, (n, d) in MODULES.items()
    }


def written(folder: Path, name: str, seed: int) -> Path:
    plain = PlainLora(updates(seed), base=BaseModel("tiny/base"))
    (file,) = write_adapter(folder / name, plain, to="wide")
    return file


def assert_updates(adapter: Adapter, seed: int) -> None:
    for module, update in updates(seed).items():
        layer = adapter.layer(module)
        torch.testing.assert_close(
            layer.scaling * layer.up @ layer.down, update.scaling * update.up @ update.down
        )


@pytest.mark.usefixtures("wide")
def test_an_adapter_is_read_and_a_task_exported(tmp_path: Path) -> None:
    folders = [written(tmp_path, name, seed).parent for seed, name in enumerate(("ink", "oil"))]
    adapter = read_adapter(folders[0])
    assert (adapter.name, adapter.provenance.format, adapter.base.id) == (
        "ink",
        "wide",
        "tiny/base",
    )
    assert_updates(adapter, seed=0)
    share = Share.from_adapters(folders, variance=1.0)
    (file,) = share.export("oil", tmp_path / "out", to="wide")
    assert_updates(read_adapter(file), seed=1)


@pytest.mark.usefixtures("wide")
def test_the_command_line_takes_it(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("ink", "oil")):
        written(tmp_path / "adapters", name, seed)
    assert run("init", tmp_path / "s", f"{tmp_path}/adapters/*", "--variance", 1).code == 0
    ran = run("export", tmp_path / "s", "ink", tmp_path / "out", "--to", "wide", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["server_options"] == ["--wide", "any.safetensors"]
    assert_updates(read_adapter(tmp_path / "out"), seed=0)


def test_without_it_nobody_reads_the_file(tmp_path: Path) -> None:
    register_format(WIDE)
    file = written(tmp_path, "ink", 0)
    del FORMATS["wide"]
    with pytest.raises(CorruptAdapterError, match="no LoRA tensor of a format that is known"):
        read_adapter(file)
    with pytest.raises(OptionError, match="unknown format"):
        write_adapter(tmp_path / "x", PlainLora(updates(0)), to="wide")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(OptionError, match="registered already"):
        register_format(Format("peft", is_wide, read_wide))
    with pytest.raises(OptionError, match="recognises and read"):
        Format("half", is_wide)
