"""Asking: lease, renew, release, revoke; say that a device is free, that an agent will not come back, a host is off."""

import sys
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from leasehold.events.answers import Answer
from leasehold.events.errors import InvalidInputError, RefusedError
from leasehold.events.hostdevs import STUBS
from leasehold.events.inputs import GONE_MS, LeaseRequest, PrepareRequest, Request
from leasehold.events.questions import Reading
from leasehold.events.schedule_inputs import SetClassRequest
from leasehold.events.scheduling import Need, Option
from leasehold.services.asking import (
    confirm_free_request,
    constraints_of,
    declare_dead_request,
    lease_request,
    needs_of,
    release_request,
    renew_request,
    retire_agent_request,
    revoke_request,
)
from leasehold.services.cli import render, render_scheduling
from leasehold.services.cli.common import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_USAGE,
    asynchronous,
    client_of,
    common,
    complete_device,
    dry_run_option,
    is_dry_run,
)
from leasehold.services.cli.values import Duration, LeaseId, LeaseOrQueuedId
from leasehold.services.holding import until_granted, until_prepared


async def ask_and_tell(
    data: str | None, request: Request, *, as_json: bool, is_waited_for: bool = False, is_followed: bool = True
) -> Answer | None:
    """Ask, and tell the answer: of what waits, when it does so no more, with progress on standard error; of a grant, if
    `is_waited_for`, when its devices are handed over, or could not be. With `--dry-run` tell how it would be decided.

    The answer, if there was one and it was no refusal.
    """
    _point_at_faults(request)
    async with client_of(data) as client:
        if is_dry_run():
            tell_considered(await client.consider(request), as_json=as_json)
            return None
        try:
            if isinstance(request, LeaseRequest) and request.wait_ms and is_followed:
                answer = await until_granted(client, request, render_scheduling.waits)
            else:
                answer = await client.answer_to(request)
        except RefusedError:
            answer = await client.answer_to(request)
        if is_waited_for and answer.outcome == "granted" and isinstance(request, LeaseRequest | PrepareRequest):
            answer = await until_prepared(client, request, answer)
    return _tell(answer, as_json=as_json)


def _point_at_faults(request: Request) -> None:
    """Show the place at which a selector cannot be read; others, who ask in its stead, would only say which it is.

    Raises:
        InvalidInputError: one of the request's selectors cannot be read.
    """
    texts = [request.select] if isinstance(request, SetClassRequest) else []
    for need in getattr(request, "needs", ()):
        texts += [each.select for each in (need, *need.first_of)]
    if not any(texts):
        return
    # Whoever asks for something by its name loads nothing of this.
    from leasehold.projections import selectors

    for text in filter(None, texts):
        fault = selectors.check(text)
        if fault is not None:
            for part in fault.shown.splitlines():
                render.line(part, err=True)
            raise InvalidInputError(fault.message, field="select")


def tell_considered(reading: Reading, *, as_json: bool) -> None:
    """How it would be decided. The exit code is the one that doing it would have."""
    if as_json:
        render.json_line(reading)
    elif reading.answer is not None:
        click.echo("nothing is done; it would be decided like this:", err=True)
        if reading.answer.outcome != "refused":
            render.answered(reading.answer, as_json=False)
        render_scheduling.considered(reading)
    if reading.answer is not None and reading.answer.outcome == "refused":
        if not as_json:
            render.refused(reading.answer)
        sys.exit(EXIT_REFUSED)


def _tell(answer: Answer, *, as_json: bool) -> Answer:
    render.answered(answer, as_json=as_json)
    if answer.outcome == "refused":
        sys.exit(EXIT_REFUSED)
    if answer.outcome == "invalid":
        sys.exit(EXIT_USAGE)
    if answer.outcome == "granted" and answer.ended:
        sys.exit(EXIT_FAILED)
    return answer


def request_id_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--request-id` and `--dry-run`."""
    return click.option(
        "--request-id", default=None, help="Your own name for this request: asking again with it is safe."
    )(dry_run_option(function))


def need_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is needed, where no device is named."""
    for option in (
        click.option("--tolerate", "tolerates", multiple=True, metavar="TAINT", help="Take also what has this taint."),
        click.option("--distinct", multiple=True, metavar="ATTRIBUTE", help="No two alike in this: host."),
        click.option("--same", multiple=True, metavar="ATTRIBUTE", help="All alike in this: numa_node, pcie_root."),
        click.option(
            "--need", "needs", multiple=True, metavar="JSON",
            help='One of several needs: {"name": "nic", "class": "nic", "count": 2}, as `select` or `first_of`.',
        ),
        click.option(
            "--first-of", multiple=True, metavar="SELECTOR", help="The first of these that can be had, in this order."
        ),
        click.option("--all", "every", is_flag=True, help="All devices that match, and at least --count."),
        click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many devices."),
        click.option("--class", "device_class", default="", metavar="CLASS", help="Devices of this class."),
        click.option("--select", default="", metavar="SELECTOR", help="Devices that match: device.numa_node == 0"),
    ):  # fmt: skip
        function = option(function)
    return function


class _NeedSaid(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"device_class": "class"}
):
    """A need as `--need` has it; so are its options."""

    name: str = ""
    select: str = ""
    device_class: str = ""
    count: int = 1
    every: bool = False
    first_of: tuple["_NeedSaid", ...] = ()


def needs_said(
    *, select: str, device_class: str, count: int, every: bool, first_of: tuple[str, ...], needs: tuple[str, ...]
) -> tuple[Need, ...]:
    """What `need_options` say.

    Raises:
        InvalidInputError: a `--need` is none; or a number is said of nothing.
    """
    if (count != 1 or every) and not (select or device_class or first_of):
        raise InvalidInputError("so many of what? say --select, --class or --first-of", field="count")
    if first_of and (select or device_class):
        raise InvalidInputError("say --first-of, or --select and --class", field="first-of")
    read = [_need_of(text) for text in needs]
    return needs_of(select, device_class=device_class, count=count, every=every, first_of=first_of, needs=read)


def _need_of(text: str) -> Need:
    try:
        said = msgspec.json.decode(text, type=_NeedSaid)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidInputError(
            f'{error}; a need looks like {{"name": "gpu", "class": "gpu", "count": 2}}', field="need"
        ) from None
    options = tuple(
        Option(select=each.select, device_class=each.device_class, count=each.count, every=each.every)
        for each in said.first_of
    )
    return Need(
        name=said.name,
        select=said.select,
        device_class=said.device_class,
        count=said.count,
        every=said.every,
        first_of=options,
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
@click.argument("names", nargs=-1, metavar="[DEVICE]...", shell_complete=complete_device)
@need_options
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
@click.option(
    "--wait", "wait_ms", type=Duration(), is_flag=False, flag_value="24h", default=0, metavar="[TIME]",
    help="Wait for its turn, for so long (24h), and say how it stands. Ctrl-C takes it back.",
)  # fmt: skip
@click.option("--no-follow", is_flag=True, help="With --wait: let it wait by itself, and say its place in the queue.")
@click.option("--priority", type=int, default=0, help="Each step counts like a minute of waiting: -100 to 100.")
@click.option("--mode", type=click.Choice(("shared", "admin")), default=None, help="With others; or only looking on.")
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
    wait_ms: int,
    no_follow: bool,
    priority: int,
    mode: str | None,
    same: tuple[str, ...],
    distinct: tuple[str, ...],
    tolerates: tuple[str, ...],
    request_id: str | None,
    **needed: Any,
) -> None:
    """Lease devices, all or none: those that are named, or what is needed.

    leasehold lease pci_0000_03_00_0 --for vm:web1

    leasehold lease --class gpu --count 2 --same numa_node --wait --for job:17
    """
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
        needs=needs_said(**needed),
        constraints=constraints_of(same, distinct),
        mode=mode or "",
        tolerates=tolerates,
        wait_ms=wait_ms,
        priority=priority,
        request_id=request_id,
    )
    await ask_and_tell(data, request, as_json=as_json, is_waited_for=wait_prepared, is_followed=not no_follow)


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
@click.argument("lease_id", type=LeaseOrQueuedId(), metavar="LEASE|QUEUED")
@click.option("--reason", required=True, help="Why; it stands in the log with your name.")
@click.option("--force", is_flag=True, help="Take its devices even from a domain that still has them.")
@request_id_option
@common
@asynchronous
async def revoke(
    data: str | None, as_json: bool, lease_id: int, reason: str, force: bool, request_id: str | None
) -> None:
    """Take a lease away, whoever holds it, or a request that waits (Q4352). A lease's devices are free when nobody has
    them any more.

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
