"""What schedulers and operators say: classes, quotas, the queue, cordons, taints, drains, policies, handing on."""

import sys
from collections.abc import Callable
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.inputs import Request
from leasehold.events.schedule_views import ClassView, QueuedView, QuotaView, TaintView
from leasehold.events.scheduling import EFFECTS
from leasehold.events.views import DeviceView
from leasehold.services import schedule_asking as making
from leasehold.services.asking import constraints_of
from leasehold.services.cli import render, render_scheduling
from leasehold.services.cli.asking import ask_and_tell, need_options, needs_said, request_id_option
from leasehold.services.cli.common import EXIT_FAILED, asynchronous, client_of, common, complete_device, listing
from leasehold.services.cli.rows import form_of, write
from leasehold.services.cli.values import Duration, LeaseId, QueuedId

_REASON_HELP: Final = "Why; it stands in the log with your name."


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """A device by any name, or a whole host."""
    function = click.option("--host", default="", help="The host; without DEVICE all of it.")(function)
    return click.argument("device", required=False, default="", shell_complete=complete_device)(function)


_reason: Final = click.option("--reason", required=True, help=_REASON_HELP)
_device: Final = click.argument("device", shell_complete=complete_device)
_host: Final = click.option("--host", default="", help="On which host.")
_lease: Final = click.argument("lease_id", type=LeaseId(), metavar="LEASE")
_token: Final = click.option("--token", type=int, required=True, help="The lease's token.")


def _asks(*decorators: Callable[..., Any]) -> Callable[[Callable[..., Request]], click.Command]:
    """A command that asks for what the function makes of its arguments and options."""

    def made(function: Callable[..., Request]) -> click.Command:
        async def run(data: str | None, as_json: bool, **said: Any) -> None:
            await ask_and_tell(data, function(**said), as_json=as_json)

        run.__doc__ = function.__doc__
        wrapped: Callable[..., Any] = asynchronous(run)
        for decorator in reversed((*decorators, request_id_option, common)):
            wrapped = decorator(wrapped)
        return click.command(function.__name__.strip("_").replace("_", "-"))(wrapped)

    return made


# --- classes and quotas ---------------------------------------------------------------------------------------------


@click.group("class")
def device_class() -> None:
    """Device classes: selectors with a name."""


@_asks(click.argument("name"), click.argument("selector"))
def add(name: str, selector: str, request_id: str | None) -> Request:
    """Give SELECTOR a name, or a name another selector: `class add gpu 'device.pci.class == "0302"'`."""
    return making.set_class_request(name, selector, request_id=request_id)


@_asks(click.argument("name"))
def remove(name: str, request_id: str | None) -> Request:
    """Take a class away. Refused while a quota or a waiting request names it."""
    return making.remove_class_request(name, request_id=request_id)


@click.command("list")
@listing
@asynchronous
async def list_classes(data: str | None, as_json: bool, as_csv: bool) -> None:
    """List the classes, with how many of their devices are free."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.classes()
    write(rows, ClassView, form, render_scheduling.classes)


for command in (add, remove, list_classes):
    device_class.add_command(command)


@click.command()
@click.argument("name", required=False, default="")
@listing
@asynchronous
async def free(data: str | None, as_json: bool, as_csv: bool, name: str) -> None:
    """What is free: how many devices of each class; of the class NAME, which."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        if name:
            write(await client.free(name), DeviceView, form, render.devices)
        else:
            write(await client.classes(), ClassView, form, render_scheduling.classes)


@click.group()
def quota() -> None:
    """How many devices a tenant may have at a time."""


@_asks(
    click.argument("tenant"),
    click.argument("devices", metavar="DEVICES|none"),
    click.option("--class", "class_name", default="", metavar="CLASS", help="Of this class; without it of all."),
)
def _set(tenant: str, devices: str, class_name: str, request_id: str | None) -> Request:
    """Say how many devices TENANT may have; `none` takes the quota away. Who has more already keeps them."""
    if devices != "none" and not devices.isdecimal():
        raise InvalidInputError(f"{devices[:40]!r} is no number of devices; say 0 or more, or none", field="devices")
    devices_max = -1 if devices == "none" else int(devices)
    return making.set_quota_request(tenant, devices_max, device_class=class_name, request_id=request_id)


@click.command("list")
@click.option("--tenant", default="", help="Only this tenant's.")
@listing
@asynchronous
async def list_quotas(data: str | None, as_json: bool, as_csv: bool, tenant: str) -> None:
    """List the quotas, and how much of each is used."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.quotas(tenant=tenant)
    write(rows, QuotaView, form, render_scheduling.quotas)


for command in (_set, list_quotas):
    quota.add_command(command)

# --- the queue ------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--class", "class_name", default="", metavar="CLASS", help="Only for this class.")
@listing
@asynchronous
async def queue(data: str | None, as_json: bool, as_csv: bool, tenant: str, class_name: str) -> None:
    """List the requests that wait, first who comes first, and what is kept for them."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.queue(tenant=tenant, device_class=class_name)
    write(rows, QueuedView, form, render_scheduling.queue)


@_asks(
    click.argument("queued", type=QueuedId(), metavar="QUEUED"),
    click.option("--reason", default="", help=_REASON_HELP),
)
def withdraw(queued: int, reason: str, request_id: str | None) -> Request:
    """Take back a request that waits, by its place in the queue (Q4352)."""
    return making.withdraw_request(queued, reason, request_id=request_id)


# --- handing on -----------------------------------------------------------------------------------------------------


@_asks(
    _lease, _token,
    click.option("--to", "holder", required=True, metavar="HOLDER", help="For whom it is from then on."),
    click.option("--principal", default="", help="Whose it is from then on, if not yours."),
)  # fmt: skip
def transfer(lease_id: int, token: int, holder: str, principal: str, request_id: str | None) -> Request:
    """Give a lease to another holder. It gets a new token, and the old one opens nothing any more."""
    return making.transfer_request(lease_id, token, holder, principal=principal, request_id=request_id)


@_asks(
    _lease,
    click.argument("devices", nargs=-1, metavar="[DEVICE]...", shell_complete=complete_device),
    _token,
    click.option("--ttl", "ttl_ms", type=Duration(), default="10m", show_default=True, help="Ends unless renewed."),
    need_options,
    click.option("--host", default="", help="Where."),
    click.option("--driver", default="", metavar="STUB", help="Where a binder hands over: the stub driver."),
)
def reserve(
    lease_id: int,
    devices: tuple[str, ...],
    token: int,
    ttl_ms: int,
    host: str,
    driver: str,
    same: tuple[str, ...],
    distinct: tuple[str, ...],
    tolerates: tuple[str, ...],
    request_id: str | None,
    **needed: Any,
) -> Request:
    """Before a domain moves: hold other devices for it, elsewhere. They are a lease of their own, whose token opens
    nothing before `switch`.
    """
    return making.reserve_request(
        lease_id,
        token,
        devices,
        ttl_ms=ttl_ms,
        needs=needs_said(**needed),
        constraints=constraints_of(same, distinct),
        host=host,
        tolerates=tolerates,
        driver=driver,
        request_id=request_id,
    )


@_asks(_lease, _token)
def switch(lease_id: int, token: int, request_id: str | None) -> Request:
    """The domain has moved: the reserved LEASE counts, with a new token, and the one that it stood in for ends."""
    return making.switch_request(lease_id, token, request_id=request_id)


# --- devices and hosts ----------------------------------------------------------------------------------------------


@_asks(_target, _reason)
def cordon(device: str, host: str, reason: str, request_id: str | None) -> Request:
    """Let nothing more of a device, or of a host, be granted. Leases stay."""
    return making.cordon_request(reason, host=host, device=device, request_id=request_id)


@_asks(_target)
def uncordon(device: str, host: str, request_id: str | None) -> Request:
    """Let it be granted again."""
    return making.uncordon_request(host=host, device=device, request_id=request_id)


_notice: Final = click.option(
    "--notice", "notice_ms", type=Duration(), default=0, help="So long from now leases end; without it, at once."
)


@_asks(
    click.argument("name", metavar="NAME[=VALUE]"), _target, _reason,
    click.option("--effect", type=click.Choice(EFFECTS), default="no_grant", show_default=True,
                 help="Grant nothing more; or also end leases that do not tolerate it."),
    _notice,
)  # fmt: skip
def taint(
    name: str, device: str, host: str, reason: str, effect: str, notice_ms: int, request_id: str | None
) -> Request:
    """Keep away from a device, or a host, whoever does not tolerate NAME."""
    name, _, value = name.partition("=")
    return making.taint_request(
        name,
        reason,
        host=host,
        device=device,
        value=value,
        effect=effect,
        notice_ms=notice_ms,
        request_id=request_id,
    )


@_asks(click.argument("name"), _target)
def untaint(name: str, device: str, host: str, request_id: str | None) -> Request:
    """Take a taint away; of a drain, NAME is `drain`."""
    return making.untaint_request(name, host=host, device=device, request_id=request_id)


@_asks(_target, _reason, _notice)
def drain(device: str, host: str, reason: str, notice_ms: int, request_id: str | None) -> Request:
    """End the leases of a device, or of a host, and grant nothing more of it. Those that tolerate `drain` stay.

    With --dry-run it lists the leases that would end, and whose they are. `untaint drain` takes it back.
    """
    return making.drain_request(reason, host=host, device=device, notice_ms=notice_ms, request_id=request_id)


@click.command()
@click.option("--host", default="", help="Only on this host.")
@listing
@asynchronous
async def taints(data: str | None, as_json: bool, as_csv: bool, host: str) -> None:
    """List what is cordoned, tainted or drained, by whom and why."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.taints(host=host)
    write(rows, TaintView, form, render_scheduling.taints)


@_asks(
    _device, _host,
    click.option("--share", "share_max", type=click.IntRange(1), default=1, show_default=True,
                 help="To so many at a time, if they ask for `--mode shared`."),
    click.option("--clean", is_flag=True, help="It must be confirmed clean before another tenant gets it."),
)  # fmt: skip
def policy(device: str, host: str, share_max: int, clean: bool, request_id: str | None) -> Request:
    """Say how a device may be handed out."""
    return making.set_policy_request(device, host=host, share_max=share_max, clean=clean, request_id=request_id)


@_asks(_device, _host, _reason)
def clean(device: str, host: str, reason: str, request_id: str | None) -> Request:
    """Say by name that a device was cleaned up behind its last lease."""
    return making.confirm_clean_request(device, reason, host=host, request_id=request_id)


@_asks(_device, _host, _reason)
def heal(device: str, host: str, reason: str, request_id: str | None) -> Request:
    """Say by name that a device which failed too often works again."""
    return making.heal_request(device, reason, host=host, request_id=request_id)


@click.command("renew-many")
@click.argument("leases", nargs=-1, required=True, metavar="LEASE=TOKEN...")
@request_id_option
@common
@asynchronous
async def renew_many(data: str | None, as_json: bool, leases: tuple[str, ...], request_id: str | None) -> None:
    """Keep many leases, each for as long as it was granted, with one request: `renew-many L4352=4352 L4608=4608`."""
    named = [_lease_and_token(each) for each in leases]
    answer = await ask_and_tell(
        data, making.renew_many_request(named, request_id=request_id), as_json=as_json
    )
    if answer is not None and answer.not_renewed:
        sys.exit(EXIT_FAILED)


def _lease_and_token(text: str) -> tuple[int, int]:
    lease, _, token = text.partition("=")
    if not token.isdecimal():
        raise InvalidInputError(f"{text[:80]!r} is no lease with its token, like L4352=4352", field="leases")
    return LeaseId().convert(lease, None, None), int(token)


COMMANDS: Final = (
    device_class, free, quota, queue, withdraw, transfer, reserve, switch, cordon, uncordon, taint, untaint, drain,
    taints, policy, clean, heal, renew_many,
)  # fmt: skip
