"""What a recipe says, once it is read: frozen values, all defaults filled in."""

# ruff: noqa: RUF009 (key is dataclasses.field with limits)
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sharespace.recipe.keys import key
from sharespace.recipe.settings import DataSettings, SubspaceSettings, TrainingSettings
from sharespace.recipe.source import Source

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of the stream: an adapter, data, or both."""

    name: str = key()
    """Of the task in the Share model."""
    data: Source | None = key(None)
    """A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, also with `.gz`), a folder
    with one file for each split, a folder of images by class, or a data set on the Hub."""
    data_config: str | None = key(None)
    """Configuration (subset) of a data set on the Hub, for example `rte` of `nyu-mll/glue`."""
    data_revision: str | None = key(None)
    """Branch, tag or commit of a data set on the Hub."""
    eval_data: Source | None = key(None)
    """A file to score on, beside a `data` that has no split for it."""
    eval_only: bool = key(False)
    """The data only scores the adapter; nothing is learned."""
    labels: tuple[str, ...] | None = key(None)
    """Names of the classes in order; left out: the data's own, a file `labels.txt` in its folder,
    or the values met in the train split, sorted."""
    adapter: Source | None = key(None)
    """A LoRA adapter: a path or Hub id. Alone it is merged as it is; with `data` learning starts
    from it."""
    settings: DataSettings = field(default_factory=DataSettings)
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    """Of the recipe."""
    line: int | None = field(default=None, compare=False)
    """Of the file, where it starts."""

    @property
    def learns(self) -> bool:
        """Something is trained: it has data that is not for scoring only."""
        return self.data is not None and not self.eval_only


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A stream of tasks on one base model."""

    base: Source = key()
    """The base model: a path or Hub id."""
    base_revision: str | None = key(None)
    """Branch, tag or commit of a base model on the Hub."""
    share: Path = key(neutral=True)
    """Folder of the Share model that the stream writes; a version after each task."""
    seed: int = key(0, least=0)
    """Of everything random: starts, order of examples, dropout, choice of examples."""
    dtype: Dtype = key("float32")
    """In which the base model is loaded."""
    store_dtype: Dtype | None = key(None)
    """In which the Share model is stored; left out: as its adapters are."""
    method: Literal["joint", "share"] = key("joint")
    """How the subspace is found: `joint`, or `share` as the paper has it."""
    variance: float | None = key(None, above=0, most=1)
    """The first subspace takes the smallest k that explains this part of its tasks (never above
    `k`); left out: `k`."""
    initial: int = key(1, least=1)
    """The first subspace is made of this many tasks: of their adapters, or of LoRAs trained here
    from their data."""
    lora_rank: int = key(8, least=1)
    """r of the LoRAs of the initial tasks."""
    lora_alpha: float = key(16.0, above=0)
    """Scaling of these LoRAs times r."""
    lora_dropout: float = key(0.0, least=0, below=1)
    """Dropout before these LoRAs."""
    lora_learning_rate: float = key(5e-4, above=0)
    """Of these LoRAs."""
    target_modules: tuple[str, ...] | None = key(None)
    """Modules that these LoRAs adapt: names' ends, or `all-linear`; left out: PEFT's choice for
    the base model. Other tasks adapt the modules of the subspace."""
    finetune: bool = key(False)
    """Train each task's coefficients once more after its merge, in the subspace as it is then
    (the paper's Share-full)."""
    finetune_max_steps: int = key(100, least=1)
    """Steps of that."""
    finetune_learning_rate: float = key(1e-3, above=0)
    """Learning rate of that."""
    router: bool = key(False)
    """Make a router that finds the task of an input, and score it too."""
    tasks: tuple[TaskSpec, ...] = ()
    file: Path | None = field(default=None, compare=False)
    """Where it was read from."""

    def task(self, name: str) -> TaskSpec | None:
        """The task of that name."""
        return next((t for t in self.tasks if t.name == name), None)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything that changes results, the tasks included.

        Paths count as they are written, so that a recipe may move together with its data.
        """
        from sharespace.recipe.identity import fingerprint

        return fingerprint(self)
