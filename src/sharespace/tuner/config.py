"""The configuration of the PEFT method, and the method's member of PEFT's enumeration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from peft.utils import PeftType

from sharespace.errors import OptionError

NAME = "SHARESPACE"


def _member() -> PeftType:
    """The member of ``PeftType`` that stands for this method, added where it is not there yet.

    PEFT (0.21) has no public way to add one from outside: ``register_peft_method`` wants the member
    to be there. An ``Enum`` is closed, so it is added to the tables that ``enum`` itself keeps.
    """
    if NAME in PeftType.__members__:
        return PeftType(NAME)
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member._sort_order_ = len(PeftType._member_names_)
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    if PeftType(NAME) is not member or NAME not in list(PeftType):
        raise RuntimeError(
            f"this Python's enum does not take the member {NAME}; sharespace needs PEFT 0.21"
        )
    return member


SHARESPACE = _member()


@dataclass
class ShareConfig(PeftConfig):
    """Train, or run, a task inside a Share model's subspace, as PEFT trains a LoRA adapter.

    ::

        model = get_peft_model(model, ShareConfig(share="glue.share", task="sst2"))

    Per adapted module the bases (n x k_left, d x k_right) are frozen and shared by all adapters of
    the model; trained are the coefficients (k x p a side), the temporary directions and the modules
    in ``modules_to_save``. Kaushik et al., arXiv 2602.06043, section 3; docs/method.md, "Step 2:
    learn a new task".
    """

    share: str | None = field(
        default=None,
        metadata={"help": "Share model: a path, a Hub id, or a name given by publish()."},
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "A task that the Share model knows (its coefficients and head are loaded), or "
            "the name of a new one."
        },
    )
    p: int | None = field(
        default=None,
        metadata={
            "help": "Pseudo-rank; None: the known task's own. Of a new core so many that p x p is "
            "a twentieth of the numbers of a LoRA of rank 8, at least 8; of factors 8."
        },
    )
    phi: int | None = field(
        default=None,
        metadata={
            "help": "Temporary directions a side; 0: none. None: a third of p, on each side as far "
            "as it has room; of factors 2."
        },
    )
    form: Literal["factors", "core"] = field(
        default="core",
        metadata={
            "help": "What a new task trains: one p x p 'core' between p frozen directions a side, "
            "phi of them temporary (sharespace.learn.choose_directions places them), or 'factors' "
            "E, F and the temporary directions. A core wants a learning rate of 0.03 to 0.1, "
            "factors 0.004, a head 0.001."
        },
    )
    start: str = field(
        default="zero",
        metadata={
            "help": "Known tasks that a new task starts from: 'zero' (none), 'mean' (of all), or "
            "the name of one. Their updates are a frozen part of the new one."
        },
    )
    known: list[str] | None = field(
        default=None,
        metadata={
            "help": "Known tasks whose updates are part of the new one with trained weights, one "
            "number a task and module; those that `start` does not name begin with weight 0."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Modules to adapt; None: all that the Share model has."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules not to adapt."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole, such as heads."}
    )
    component: str | None = field(
        default=None,
        metadata={"help": "Part of a pipeline that the model is, such as 'unet'."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Of the inputs of the update."})
    seed: int = field(default=0, metadata={"help": "Of the random start."})
    init_weights: bool = field(
        default=True,
        metadata={"help": "False: random coefficients that change the output, for tests."},
    )
    save_basis: bool = field(
        default=False,
        metadata={"help": "Save the bases with the adapter, so that it needs no Share model."},
    )
    share_version: int | None = field(
        default=None, metadata={"help": "Version of the stored Share model; None: the current."}
    )
    basis_id: str | None = field(
        default=None, metadata={"help": "Of the bases the coefficients belong to; filled in."}
    )
    # No mapping: PEFT sorts the keys of those, and the trained weights have an order.
    started_from: list[tuple[str, float]] | None = field(
        default=None,
        metadata={
            "help": "Stored coefficients (file names) of known tasks that a new task starts from, "
            "each with its weight; filled in."
        },
    )
    layout: dict[str, Any] | None = field(
        default=None, metadata={"help": "Sizes of every module, with save_basis; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SHARESPACE
        if self.p is not None and self.p < 1:
            raise OptionError(f"p={self.p}", "the pseudo-rank is at least 1", "Change it")
        if self.phi is not None and self.phi < 0:
            raise OptionError(f"phi={self.phi}", "cannot be negative", "0 is coefficients only")
        if self.form not in ("factors", "core"):
            raise OptionError(f"form={self.form!r}", "not known", "Choose 'factors' or 'core'")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout}", "it is in [0, 1)", "Change it")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            # A set, as PEFT's own configurations have it: it is written to JSON as a list.
            setattr(self, name, set(value) if isinstance(value, list) else value)
