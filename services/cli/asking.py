"""Asking: lease, renew, release, say that a device is free or that an agent will not come back."""

import sys
from typing import Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.inputs import GONE_MS, Request
from leasehold.services.asking import (
    confirm_free_request,
    lease_request,
    release_request,
    renew_request,
    retire_agent_request,
)
from leasehold.services.cli import render
from leasehold.services.cli.common import (
    EXIT_REFUSED,
    EXIT_USAGE,
    asynchronous,
    client_of,
    common,
    complete_device,
)
from leasehold.services.cli.values import Duration, LeaseId


async def _ask(data: str | None, request: Request, *, as_json: bool) -> None:
    async with client_of(data) as client:
        answer = await client.answer_to(request)
    render.answered(answer, as_json=as_json)
    if answer.outcome == "refused":
        sys.exit(EXIT_REFUSED)
    if answer.outcome == "invalid":
        sys.exit(EXIT_USAGE)


_REQUEST_ID: Final = click.option(
    "--request-id", default=None, help="Your own name for this request: asking again with it is safe."
)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...", shell_complete=complete_device)
@click.option("--for", "holder", required=True, metavar="HOLDER", help="For whom: a domain, a job, a person.")
@click.option("--ttl", "ttl_ms", type=Duration(), default="30m", show_default=True, help="Ends unless renewed.")
@click.option("--host", default="", help="On which host the names are.")
@click.option("--force", is_flag=True, help="Take a device although the host itself lives on it.")
@click.option(
    "--domain", default="", metavar="UUID",
    help="The domain that it is for, which need not exist yet: the lease does not expire while that is there.",
)  # fmt: skip
@click.option(
    "--gone", "gone_ms", type=Duration(), default=None,
    help="With --domain: the lease ends so long after the domain was seen gone.  [default: 1m]",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="With --domain: it is only named, and the lease expires as any other.")
@_REQUEST_ID
@common
@asynchronous
async def lease(
    data: str | None,
    as_json: bool,
    names: tuple[str, ...],
    holder: str,
    ttl_ms: int,
    host: str,
    force: bool,
    domain: str,
    gone_ms: int | None,
    keep: bool,
    request_id: str | None,
) -> None:
    """Lease devices, all or none."""
    if not domain and (keep or gone_ms is not None):
        said = "keep" if keep else "gone"
        raise InvalidInputError("it says what a domain's going means: name one with --domain", field=said)
    request = lease_request(
        names,
        holder=holder,
        ttl_ms=ttl_ms,
        host=host,
        force=force,
        domain=domain,
        gone_ms=GONE_MS if gone_ms is None else gone_ms,
        keep=keep,
        request_id=request_id,
    )
    await _ask(data, request, as_json=as_json)


@click.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@click.option("--ttl", "ttl_ms", type=Duration(), default=0, help="A new time to live; by default as before.")
@_REQUEST_ID
@common
@asynchronous
async def renew(
    data: str | None, as_json: bool, lease_id: int, token: int, ttl_ms: int, request_id: str | None
) -> None:
    """Keep a lease."""
    request = renew_request(lease_id, token, ttl_ms=ttl_ms, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@click.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@_REQUEST_ID
@common
@asynchronous
async def release(data: str | None, as_json: bool, lease_id: int, token: int, request_id: str | None) -> None:
    """Give a lease back."""
    request = release_request(lease_id, token, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@click.command("confirm-free")
@click.argument("device", shell_complete=complete_device)
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@click.option("--host", default="", help="On which host.")
@_REQUEST_ID
@common
@asynchronous
async def confirm_free(
    data: str | None, as_json: bool, device: str, reason: str, host: str, request_id: str | None
) -> None:
    """Say by name that nobody uses a device whose lease has ended."""
    request = confirm_free_request(device, reason, host=host, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@click.command()
@click.argument("host")
@click.argument("agent")
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@_REQUEST_ID
@common
@asynchronous
async def retire(data: str | None, as_json: bool, host: str, agent: str, reason: str, request_id: str | None) -> None:
    """Say by name that an agent of a host (its poller, its watcher) will not come back.

    What only it told of is forgotten, and its silence keeps nothing from being granted. Refused while it is heard.
    """
    await _ask(data, retire_agent_request(host, agent, reason, request_id=request_id), as_json=as_json)


COMMANDS: Final = (lease, renew, release, confirm_free, retire)
