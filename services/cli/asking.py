"""Asking: lease, renew, release, revoke; say that a device is free, that an agent will not come back, a host is off."""

import sys
from collections.abc import Callable
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import STUBS
from leasehold.events.inputs import GONE_MS, LeaseRequest, PrepareRequest, Request
from leasehold.services.asking import (
    confirm_free_request,
    declare_dead_request,
    lease_request,
    release_request,
    renew_request,
    retire_agent_request,
    revoke_request,
)
from leasehold.services.cli import render
from leasehold.services.cli.common import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_USAGE,
    asynchronous,
    client_of,
    common,
    complete_device,
)
from leasehold.services.cli.values import Duration, LeaseId
from leasehold.services.holding import until_prepared


async def ask_and_tell(data: str | None, request: Request, *, as_json: bool, is_waited_for: bool = False) -> None:
    """Ask, and tell the answer; of a grant, if `is_waited_for`, when its devices are handed over, or could not be."""
    async with client_of(data) as client:
        answer = await client.answer_to(request)
        if is_waited_for and answer.outcome == "granted" and isinstance(request, LeaseRequest | PrepareRequest):
            answer = await until_prepared(client, request, answer)
    render.answered(answer, as_json=as_json)
    if answer.outcome == "refused":
        sys.exit(EXIT_REFUSED)
    if answer.outcome == "invalid":
        sys.exit(EXIT_USAGE)
    if answer.outcome == "granted" and answer.ended:
        sys.exit(EXIT_FAILED)


request_id_option: Final = click.option(
    "--request-id", default=None, help="Your own name for this request: asking again with it is safe."
)


def stub_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How devices are handed over on managed hosts."""
    function = click.option(
        "--unmanaged", is_flag=True,
        help="They are on a stub driver already, by hand, and stay there; else it is refused.",
    )(function)  # fmt: skip
    return click.option("--driver", default="", metavar="STUB", help=f"Where a binder hands over: {', '.join(STUBS)}.")(
        function
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
@stub_options
@click.option("--wait-prepared", is_flag=True, help="Wait until managed hosts have handed the devices over.")
@request_id_option
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
    driver: str,
    unmanaged: bool,
    wait_prepared: bool,
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
        driver=driver,
        unmanaged=unmanaged,
        request_id=request_id,
    )
    await ask_and_tell(data, request, as_json=as_json, is_waited_for=wait_prepared)


@click.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@click.option("--ttl", "ttl_ms", type=Duration(), default=0, help="A new time to live; by default as before.")
@request_id_option
@common
@asynchronous
async def renew(
    data: str | None, as_json: bool, lease_id: int, token: int, ttl_ms: int, request_id: str | None
) -> None:
    """Keep a lease."""
    request = renew_request(lease_id, token, ttl_ms=ttl_ms, request_id=request_id)
    await ask_and_tell(data, request, as_json=as_json)


@click.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@request_id_option
@common
@asynchronous
async def release(data: str | None, as_json: bool, lease_id: int, token: int, request_id: str | None) -> None:
    """Give a lease back."""
    request = release_request(lease_id, token, request_id=request_id)
    await ask_and_tell(data, request, as_json=as_json)


@click.command("confirm-free")
@click.argument("device", shell_complete=complete_device)
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@click.option("--host", default="", help="On which host.")
@request_id_option
@common
@asynchronous
async def confirm_free(
    data: str | None, as_json: bool, device: str, reason: str, host: str, request_id: str | None
) -> None:
    """Say by name that nobody uses a device whose lease has ended."""
    request = confirm_free_request(device, reason, host=host, request_id=request_id)
    await ask_and_tell(data, request, as_json=as_json)


@click.command()
@click.argument("host")
@click.argument("agent")
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@request_id_option
@common
@asynchronous
async def retire(data: str | None, as_json: bool, host: str, agent: str, reason: str, request_id: str | None) -> None:
    """Say by name that an agent of a host (its poller, its watcher) will not come back.

    What only it told of is forgotten, and its silence keeps nothing from being granted. Refused while it is heard.
    """
    await ask_and_tell(data, retire_agent_request(host, agent, reason, request_id=request_id), as_json=as_json)


@click.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--reason", required=True, help="Why; it stands in the log with your name.")
@click.option("--force", is_flag=True, help="Take its devices even from a domain that still has them.")
@request_id_option
@common
@asynchronous
async def revoke(
    data: str | None, as_json: bool, lease_id: int, reason: str, force: bool, request_id: str | None
) -> None:
    """Take a lease away, whoever holds it. Its devices are free when nobody has them any more.

    By force, a lease that has ended may be named, too: a domain that keeps a device of it loses that.
    """
    await ask_and_tell(data, revoke_request(lease_id, reason, force=force, request_id=request_id), as_json=as_json)


@click.command()
@click.argument("host")
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@request_id_option
@common
@asynchronous
async def dead(data: str | None, as_json: bool, host: str, reason: str, request_id: str | None) -> None:
    """Say by name that a host is off, so that nobody waits for it any more. Refused while any agent of it is heard.

    What its ended leases held is free; living ones stay. Nothing of it is granted before it has reported anew.
    """
    await ask_and_tell(data, declare_dead_request(host, reason, request_id=request_id), as_json=as_json)


COMMANDS: Final = (lease, renew, release, revoke, confirm_free, retire, dead)
