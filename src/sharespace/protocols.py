"""What is used of PEFT, transformers and datasets, as types.

They are optional and have no types that mypy could use, so that without these everything that
comes from them would be ``Any``. Nothing is checked at run time.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch: TypeAlias = Mapping[str, Tensor]
"""A model's arguments, by name, the rows of a batch first."""


class AdapterConfig(Protocol):
    """What ``peft.PeftConfig`` and its subclasses have in common."""

    base_model_name_or_path: str | None
    task_type: str | None
    """A text or a member of ``peft.TaskType``, which is one, too."""
    modules_to_save: list[str] | None


class TrainOutput(Protocol):
    """What ``transformers.Trainer.train`` returns."""

    training_loss: float
    global_step: int
    metrics: Mapping[str, float]


class ProgressState(Protocol):
    """``transformers.TrainerState``."""

    max_steps: int
    stateful_callbacks: Mapping[str, Any]
    """Callback -> the state that a checkpoint holds of it."""

    log_history: list[dict[str, float]]
    is_world_process_zero: bool
    global_step: int


class TrainerLike(Protocol):
    """``transformers.Trainer`` or a subclass of it, such as TRL's ``SFTTrainer``."""

    state: ProgressState

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:
        """Train to the end of the arguments' steps or epochs."""

    def evaluate(self) -> dict[str, float]:
        """Evaluation measures, under names that start with ``eval_``."""

    def get_train_dataloader(self) -> Iterable[Batch]:
        """The batches of one epoch, on the model's device."""

    def get_eval_dataloader(self) -> DataLoader[Mapping[str, object]]:
        """The batches of the evaluation data."""

    def add_callback(self, callback: object) -> None:
        """Call the callback from now on."""

    def compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        """The loss of one batch, a scalar that gradients flow from."""

    def remove_callback(self, callback: type) -> None:
        """Take the callback of that class away."""


class PeftModel(nn.Module):
    """``peft.PeftModel``: a class, as protocols cannot extend ``nn.Module``; nothing is one.

    Its methods are abstract, as those of a protocol are.
    """

    peft_config: dict[str, AdapterConfig]

    @abstractmethod
    def __getattr__(self, name: str) -> Any:
        """PEFT passes on whatever the base model has, such as ``generate``."""

    @abstractmethod
    def unload(self) -> nn.Module:
        """The base model without PEFT's layers."""

    @abstractmethod
    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Write adapters in PEFT's layout."""


class Tokenizer(Protocol):
    """``transformers.PreTrainedTokenizerBase``: what serving needs of it."""

    pad_token_id: int | None
    eos_token_id: int | list[int] | None
    padding_side: str
    chat_template: str | None
    all_special_tokens: Sequence[str]
    all_special_ids: Sequence[int]

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Mapping[str, Sequence[int]]:
        """Token ids of one text, under ``input_ids``."""

    def __len__(self) -> int:
        """Number of tokens in the vocabulary."""

    def get_vocab(self) -> Mapping[str, int]:
        """Text -> id of every token."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """A conversation as text, by the tokenizer's own template."""


class RowTable(Protocol):
    """What is used of ``datasets.Dataset``: rows with named columns."""

    features: Mapping[str, object]
    """Column -> its type."""
    _fingerprint: str

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, key: str) -> Sequence[object]:
        """All values of a column."""

    def select(self, indices: Iterable[int]) -> RowTable:
        """These rows, in this order."""

    def shuffle(self, *, seed: int, keep_in_memory: bool) -> RowTable:
        """The rows in a random order."""

    def add_column(self, name: str, column: list[object]) -> RowTable:
        """The rows with one more column."""

    def remove_columns(self, column_names: str) -> RowTable:
        """The rows without a column."""

    def with_transform(
        self, transform: Callable[[Mapping[str, Sequence[Any]]], object]
    ) -> RowTable:
        """Rows that are transformed when they are taken."""

    def map(
        self, function: Callable[[Mapping[str, Sequence[Any]]], object], **options: object
    ) -> RowTable:
        """Rows that a function made of the rows of a batch."""

    def train_test_split(self, **options: object) -> Mapping[str, RowTable]:
        """The rows in two tables, ``train`` and ``test``."""
