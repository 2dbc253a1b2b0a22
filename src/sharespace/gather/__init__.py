"""Many workers, one Share model: hand in what was trained against any version, merge it once."""

from sharespace.gather.batch import OnConflict
from sharespace.gather.codec import decode, encode
from sharespace.gather.contribution import BasisReference, Contribution, Coordinates, PlainFactors
from sharespace.gather.gatherer import (
    Arrival,
    Gathered,
    Gatherer,
    GatherSettings,
    Refusal,
    gather,
    watch,
)
from sharespace.gather.hub_store import pull, push
from sharespace.gather.inboxes import Inbox, InboxFile, open_inbox
from sharespace.gather.submit import Submission, hand_in, read_contribution, submit

__all__ = [
    "Arrival",
    "BasisReference",
    "Contribution",
    "Coordinates",
    "GatherSettings",
    "Gathered",
    "Gatherer",
    "Inbox",
    "InboxFile",
    "OnConflict",
    "PlainFactors",
    "Refusal",
    "Submission",
    "decode",
    "encode",
    "gather",
    "hand_in",
    "open_inbox",
    "pull",
    "push",
    "read_contribution",
    "submit",
    "watch",
]
