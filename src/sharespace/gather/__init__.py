"""Many workers, one Share model: hand in what was trained against any version, merge it once."""

from sharespace.gather.batch import OnConflict
from sharespace.gather.codec import decode, encode
from sharespace.gather.contribution import BasisReference, Contribution, Coordinates, PlainFactors
from sharespace.gather.gatherer import (
    Gathered,
    Gatherer,
    GatherSettings,
    MergedContribution,
    Refusal,
    gather,
    watch,
)
from sharespace.gather.hub_store import pull, push
from sharespace.gather.inboxes import Inbox, InboxFile, open_inbox
from sharespace.gather.submit import Submission, hand_in, read_contribution, submit

__all__ = [
    "BasisReference",
    "Contribution",
    "Coordinates",
    "GatherSettings",
    "Gathered",
    "Gatherer",
    "Inbox",
    "InboxFile",
    "MergedContribution",
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
