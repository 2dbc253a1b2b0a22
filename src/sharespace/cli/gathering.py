"""The commands ``submit``, ``gather``, ``push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import options as o


def submit(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="What save_pretrained wrote.")],
    inbox: o.Inbox,
    task: Annotated[
        str | None, typer.Option(help="Its name; default that of the ShareConfig, or the folder's.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Whole factors: larger, independent of the history.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="INBOX hf://USER/REPO/FOLDER: propose it there.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Hand in a trained task as one small file, for gather to merge."""
    from sharespace.cli import contributions
    from sharespace.gather import submit as hand_in

    sent = hand_in(adapter, inbox, task=task, plain=plain, pull_request=pull_request)
    contributions.submitted(sent, as_json)


def gather(
    share: o.SharePath,
    inbox: o.Inbox,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until SIGINT or SIGTERM.")] = False,
    interval: Annotated[
        float, typer.Option(help="With --watch: seconds between two looks.")
    ] = 10.0,
    batch: Annotated[int, typer.Option(help="Contributions that one version takes in.")] = 32,
    on_conflict: Annotated[
        o.OnConflict, typer.Option(help="Where the task's name is taken by other content.")
    ] = "refuse",
    device: o.Device = "cpu",
    as_json: o.AsJson = False,
) -> None:
    """Merge what was handed in, each contribution once; bad ones are set aside with a reason."""
    from sharespace.cli import contributions
    from sharespace.gather import GatherSettings

    options = GatherSettings(batch, on_conflict, device=device)
    if watch:
        contributions.follow(share, inbox, options, interval, as_json)
    else:
        contributions.gather(share, inbox, options, as_json)


def push(
    share: o.SharePath,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="USER/REPO on the Hugging Face Hub; it exists.")
    ],
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose it, instead of committing.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Bring a Share model's new versions to the Hub, in one commit."""
    from sharespace.cli import contributions
    from sharespace.gather import push as bring

    url = bring(share, repository, pull_request=pull_request)
    contributions.pushed(repository, url, as_json)


def pull(
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="USER/REPO[@REVISION] on the Hugging Face Hub.")
    ],
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="A copy of it, or a new path.")],
    as_json: o.AsJson = False,
) -> None:
    """Bring a copy of a Share model to the version on the Hub, or make one."""
    from sharespace.cli import contributions
    from sharespace.gather import pull as bring

    contributions.pulled(share, bring(repository, share), as_json)
