"""Many workers, one Share model: hand in what was trained against any version, merge it once."""

from sharespace.gather.batch import OnConflict
from sharespace.gather.codec import decode, encode
from sharespace.gather.contribution import Basis, Contribution, Coordinates, Plain
from sharespace.gather.gatherer import Arrival, Gathered, Gatherer, Options, gather
from sharespace.gather.hub import pull, push
from sharespace.gather.inbox import Entry, Inbox, open_inbox
from sharespace.gather.quarantine import Refusal
from sharespace.gather.saved import read_contribution
from sharespace.gather.submit import Submission, hand_in, submit
from sharespace.gather.watch import watch

__all__ = [
    "Arrival",
    "Basis",
    "Contribution",
    "Coordinates",
    "Entry",
    "Gathered",
    "Gatherer",
    "Inbox",
    "OnConflict",
    "Options",
    "Plain",
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
