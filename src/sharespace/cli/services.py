"""The commands that talk to other machines: the server, inboxes and the Hub.

``app`` registers them. Heavy imports are inside them, as there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import arguments as a


def serve(
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="A stored Share model.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, a path or Hub id; default: what SHARE says.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What requests call the base model; default: as --base.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    dtype: Annotated[
        str, typer.Option(help="Of the model: float32, bfloat16 or float16.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Tasks in memory at the same time.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows of a batch.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 256,
    seconds: Annotated[float, typer.Option(help="That an answer may take; then 504.")] = 120.0,
    body: Annotated[int, typer.Option(help="Bytes of a request's body; more get 413.")] = 2**20,
    body_seconds: Annotated[
        float, typer.Option(help="In which a request's body comes; then 408.")
    ] = 20.0,
    connections: Annotated[
        int, typer.Option(help="At most; a silent one makes room, else one more gets 503.")
    ] = 1000,
    silence: Annotated[
        float, typer.Option(help="Seconds that a connection may send or take nothing.")
    ] = 20.0,
    drain: Annotated[
        float, typer.Option(help="Seconds for running requests when it is stopped.")
    ] = 30.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="SHARESPACE_API_KEY", help="Bearer token of clients.")
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(envvar="SHARESPACE_ADMIN_TOKEN", help="Bearer token to change tasks."),
    ] = None,
) -> None:
    """Serve the base model and every task over HTTP, as OpenAI's API has it."""
    from sharespace.errors import OptionError
    from sharespace.extras import require

    secrets = {"SHARESPACE_API_KEY": api_key, "SHARESPACE_ADMIN_TOKEN": admin_token}
    for secret, value in secrets.items():
        # click takes an empty variable for one that is not set; here it would leave a door open.
        if value is None and os.environ.get(secret) == "":
            raise OptionError(secret, "it is empty", "Set it to a token, or unset it")
    process = require("sharespace.serve.process", "serve")
    http = process.HttpSettings(
        answer_seconds=seconds,
        body_bytes=body,
        body_seconds=body_seconds,
        api_key=api_key,
        admin_token=admin_token,
    )
    limits = process.EngineLimits(batch=batch, queue=queue)
    settings = process.ServeSettings(
        base=base,
        name=name,
        host=host,
        port=port,
        dtype=dtype,
        slots=slots,
        limits=limits,
        http=http,
        connections=process.ConnectionLimits(silence, connections),
        drain=drain,
        device=device,
    )
    process.serve(share, settings)


def submit(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="What save_pretrained wrote.")],
    inbox: a.InboxArgument,
    task: Annotated[
        str | None, typer.Option(help="Its name; default that of the ShareConfig, or the folder's.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Whole factors: larger, independent of the history.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="INBOX hf://USER/REPO/FOLDER: propose it there.")
    ] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """Hand in a trained task as one small file, for gather to merge."""
    from sharespace.cli import output
    from sharespace.gather import submit as submit_adapter

    submission = submit_adapter(adapter, inbox, task=task, plain=plain, pull_request=pull_request)
    output.print_submission(submission, as_json)


def gather(
    share: a.ShareArgument,
    inbox: a.InboxArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until SIGINT or SIGTERM.")] = False,
    interval: Annotated[
        float, typer.Option(help="With --watch: seconds between two looks.")
    ] = 10.0,
    batch: Annotated[int, typer.Option(help="Contributions that one version takes in.")] = 32,
    on_conflict: a.ConflictOption = "refuse",
    max_error: a.MaxErrorOption = None,
    new_modules: Annotated[
        bool,
        typer.Option("--new-modules", help="Take plain factors of modules that SHARE lacks."),
    ] = False,
    device: a.DeviceOption = "cpu",
    as_json: a.JsonFlag = False,
) -> None:
    """Merge what was handed in, each contribution once; bad ones are set aside with a reason."""
    from sharespace.cli import output
    from sharespace.gather import Gatherer, GatherSettings, open_inbox
    from sharespace.gather import watch as watch_inbox

    settings = GatherSettings(
        batch, on_conflict, device=device, max_error=max_error, new_modules=new_modules
    )
    gatherer = Gatherer(share, open_inbox(inbox), settings)
    if not watch:
        outcome = gatherer.run(None if as_json else output.print_gather_batch)
        output.print_gather(outcome, inbox, as_json)
        return
    observe = output.print_watched_record if as_json else output.print_watched_batch
    with a.stopped_by_signals() as stop:
        watch_inbox(
            gatherer, stop, interval=interval, observe=observe, failed=output.print_watch_failure
        )


def push(
    share: a.ShareArgument,
    repository: a.RepositoryArgument,
    pull_request: a.PullRequestFlag = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new REPO private.")] = False,
    license_id: a.LicenseOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Bring a Share model's new versions and a model card to the Hub, in one commit."""
    from sharespace.cli import output
    from sharespace.gather import push as push_versions

    url = push_versions(
        share, repository, pull_request=pull_request, private=private, license_id=license_id
    )
    output.print_push(repository, url, as_json)


def pull(
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="USER/REPO[@REVISION] on the Hugging Face Hub.")
    ],
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="A copy of it, or a new path.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Bring a copy of a Share model to the version on the Hub, or make one."""
    from sharespace.cli import output
    from sharespace.gather import pull as pull_versions

    output.print_pull(share, pull_versions(repository, share), as_json)
