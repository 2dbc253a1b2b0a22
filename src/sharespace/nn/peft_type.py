"""The method's member of PEFT's enumeration of methods.

PEFT has no public way to add one from outside: ``register_peft_method`` wants the member to be
there. An ``Enum`` is closed, so it is added to the tables that ``enum`` itself keeps, and checked.
"""

from __future__ import annotations

from peft.utils import PeftType

NAME = "SHARESPACE"


def _member() -> PeftType:
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
