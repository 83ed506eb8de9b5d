"""`leasehold nodedev`: what hosts do with devices when they are told to, and what became of such orders."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewDevice, NewMdev, NewVirtualFunctions, NewVport
from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import STUBS
from leasehold.events.inputs import CreateDeviceRequest, OperateDeviceRequest
from leasehold.events.limits import VIRTUAL_FUNCTIONS_MAX
from leasehold.events.views import DeviceView, OrderView
from leasehold.projections.telling import order_text
from leasehold.services.acting import Ordering
from leasehold.services.asking import create_device_request, destroy_device_request, operate_device_request
from leasehold.services.cli import render
from leasehold.services.cli.asking import request_id_option, tell_considered
from leasehold.services.cli.common import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_USAGE,
    asynchronous,
    client_of,
    common,
    complete_device,
    is_dry_run,
    listing,
)
from leasehold.services.cli.rows import form_of, write
from leasehold.services.cli.values import Duration, time_text
from leasehold.services.client import Client
from leasehold.services.nodedev.newdevice import XML_BYTES_MAX, parse_new_device

SEEN_S: Final = 5.0
"""So long a device that was made may take until the host's watcher has told of it."""
PAUSE_S: Final = 0.05
_OPERATED: Final = {"detach": "detached", "reattach": "reattached", "reset": "reset"}


@click.group()
def nodedev() -> None:
    """Have hosts make and destroy devices; and detach, reattach and reset those that nobody has leased."""


def _ordering(function: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--host", default="", help="On which host; needed where the names do not say it."),
        click.option("--timeout", "timeout_ms", type=Duration(), default="60s", show_default=True, help="At most."),
        click.option("--no-wait", is_flag=True, help="Do not wait until it is done: see `leasehold nodedev orders`."),
        request_id_option,
    )
    for option in reversed(options):
        function = option(function)
    return common(function)


@nodedev.command("create-vport")
@click.option("--parent", default="", help="The HBA, by any name of it; by default any that has room.")
@click.option("--parent-wwnn", default="", metavar="WWN", help="The HBA, by its node name,")
@click.option("--parent-wwpn", default="", metavar="WWN", help="or its port name.")
@click.option("--parent-fabric", default="", metavar="WWN", help="Any HBA on this fabric.")
@click.option("--wwnn", default="", metavar="WWN", help="Node name of the new one; by default one is made up.")
@click.option("--wwpn", default="", metavar="WWN", help="Port name of the new one; by default one is made up.")
@_ordering
@asynchronous
async def create_vport(
    data: str | None,
    as_json: bool,
    parent: str,
    parent_wwnn: str,
    parent_wwpn: str,
    parent_fabric: str,
    wwnn: str,
    wwpn: str,
    **how: Any,
) -> None:
    """Make a virtual HBA (NPIV)."""
    device = NewVport(
        parent=parent,
        parent_wwnn=parent_wwnn,
        parent_wwpn=parent_wwpn,
        parent_fabric_wwn=parent_fabric,
        wwnn=wwnn,
        wwpn=wwpn,
    )
    await _create(data, device, as_json=as_json, **how)


@nodedev.command("create-mdev")
@click.argument("parent", shell_complete=complete_device)
@click.argument("mdev_type", metavar="TYPE")
@click.option("--uuid", default="", help="Of the new one; by default one is made up.")
@_ordering
@asynchronous
async def create_mdev(data: str | None, as_json: bool, parent: str, mdev_type: str, uuid: str, **how: Any) -> None:
    """Make a mediated device of a TYPE that PARENT offers."""
    device = NewMdev(parent=parent, mdev_type=mdev_type, uuid=uuid.lower())
    await _create(data, device, as_json=as_json, **how)


@nodedev.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), metavar="FILE")
@_ordering
@asynchronous
async def create(data: str | None, as_json: bool, file: Path, **how: Any) -> None:
    """Make what FILE (`-`: standard input) says in libvirt's XML, as `virsh nodedev-create` does."""
    await _create(data, parse_new_device(_read(file)), as_json=as_json, **how)


@nodedev.command()
@click.argument("device", shell_complete=complete_device)
@_ordering
@asynchronous
async def destroy(
    data: str | None, as_json: bool, device: str, host: str, timeout_ms: int, no_wait: bool, request_id: str | None
) -> None:
    """Take away a virtual HBA or a mediated device."""
    request = destroy_device_request(device, host=host, timeout_ms=timeout_ms, request_id=request_id)
    await _order(data, request, as_json=as_json, no_wait=no_wait)


@nodedev.command()
@click.argument("device", shell_complete=complete_device)
@click.argument("count", type=click.IntRange(0, VIRTUAL_FUNCTIONS_MAX))
@_ordering
@asynchronous
async def vfs(data: str | None, as_json: bool, device: str, count: int, **how: Any) -> None:
    """Let DEVICE, a physical function, have COUNT virtual functions; 0 takes them away."""
    await _create(data, NewVirtualFunctions(parent=device, count=count), as_json=as_json, **how)


@nodedev.command()
@click.argument("device", shell_complete=complete_device)
@click.option("--driver", default="", metavar="STUB", help=f"Bind it to this one: {', '.join(STUBS)}.")
@_ordering
@asynchronous
async def detach(data: str | None, as_json: bool, device: str, driver: str, **how: Any) -> None:
    """Take a device that nobody has leased from its driver, and bind it to a stub, as `virsh nodedev-detach` does."""
    await _operate(data, device, "detach", as_json=as_json, driver=driver, **how)


@nodedev.command()
@click.argument("device", shell_complete=complete_device)
@_ordering
@asynchronous
async def reattach(data: str | None, as_json: bool, device: str, **how: Any) -> None:
    """Give a device to its own driver again, as `virsh nodedev-reattach` does; also one that is in quarantine."""
    await _operate(data, device, "reattach", as_json=as_json, **how)


@nodedev.command()
@click.argument("device", shell_complete=complete_device)
@_ordering
@asynchronous
async def reset(data: str | None, as_json: bool, device: str, **how: Any) -> None:
    """Reset a device that nobody has leased, as `virsh nodedev-reset` does."""
    await _operate(data, device, "reset", as_json=as_json, **how)


@nodedev.command()
@click.option("--host", default="", help="Only this host's.")
@click.option("--all", "ended", is_flag=True, help="Those that are over, too, as far as they are remembered.")
@listing
@asynchronous
async def orders(data: str | None, as_json: bool, as_csv: bool, host: str, ended: bool) -> None:
    """List what hosts were told to do, oldest first."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.orders(host=host, ended=ended)
    write(rows, OrderView, form, _table)


def _table(rows: list[OrderView]) -> None:
    columns = ("order", "state", "host", "what", "device", "asked by", "ordered", "reason")
    render.table(columns, map(_cells, rows))


def _cells(row: OrderView) -> list[str]:
    told = [str(row.order), row.state, row.host, order_text(row.what), row.device or "-", row.asked_by]
    return [*told, time_text(row.ordered_at_ns), row.reason]


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(XML_BYTES_MAX + 1)
    try:
        with file.open("rb") as opened:
            return opened.read(XML_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read ({error.strerror})", field="file") from error


async def _create(
    data: str | None,
    device: NewDevice,
    *,
    as_json: bool,
    host: str,
    timeout_ms: int,
    no_wait: bool,
    request_id: str | None,
) -> None:
    request = create_device_request(device, host=host, timeout_ms=timeout_ms, request_id=request_id)
    await _order(data, request, as_json=as_json, no_wait=no_wait)


async def _operate(data: str | None, device: str, operation: str, *, as_json: bool, no_wait: bool, **said: Any) -> None:
    await _order(data, operate_device_request(device, operation, **said), as_json=as_json, no_wait=no_wait)


async def _order(data: str | None, request: Ordering, *, as_json: bool, no_wait: bool) -> None:
    async with client_of(data) as client:
        if is_dry_run():
            tell_considered(await client.consider(request), as_json=as_json)
            return
        answer = await client.answer_to(request)
        made = None
        if answer.outcome == "ordered" and not no_wait:
            answer = await client.order(request)
            made = await _made(client, answer) if _makes(request) else None
    if answer.outcome != "ordered":
        render.answered(answer, as_json=as_json)
        sys.exit(EXIT_REFUSED if answer.outcome == "refused" else EXIT_USAGE)
    if as_json:
        render.json_line(_answer_object(answer, made))
    else:
        _tell(answer, _done_text(request, answer, made))
    if answer.state in ("failed", "timed_out"):
        sys.exit(EXIT_FAILED)


def _makes(request: Ordering) -> bool:
    """Whether there is one device more behind it."""
    return isinstance(request, CreateDeviceRequest) and not isinstance(request.device, NewVirtualFunctions)


def _done_text(request: Ordering, answer: Answer, made: DeviceView | None) -> str:
    """What is so when it is done."""
    named = ", ".join(answer.devices)
    match request:
        case CreateDeviceRequest(device=NewVirtualFunctions(parent=parent, count=count)):
            return f"{parent} has {count or 'no'} virtual function{'' if count == 1 else 's'} now"
        case CreateDeviceRequest():
            return f"{made.name} was made ({named})" if made else f"made: {named or 'what was asked for'}"
        case OperateDeviceRequest():
            return f"{_OPERATED[request.operation]}: {named or request.device}"
    return f"destroyed: {named}"


async def _made(client: Client, answer: Answer) -> DeviceView | None:
    """What was made, as soon as the host's watcher has told of it; `None` if it does not."""
    if answer.state != "done" or not answer.devices:
        return None
    host, _, key = answer.devices[0].partition("/")
    give_up_s = time.monotonic() + SEEN_S
    while True:
        try:
            found = await client.show(key, host=host)
        except InvalidInputError:
            found = None
        if isinstance(found, DeviceView) and found.state != "missing":
            return found
        if time.monotonic() > give_up_s:
            return None
        await asyncio.sleep(PAUSE_S)


def _answer_object(answer: Answer, made: DeviceView | None) -> dict[str, object]:
    return {
        "outcome": answer.outcome,
        "order": answer.order,
        "state": answer.state,
        "devices": answer.devices,
        "name": made.name if made else "",
        "reason": answer.message,
        "position": answer.position,
        "request_id": answer.request_id,
    }


def _tell(answer: Answer, done_text: str) -> None:
    match answer.state:
        case "done":
            render.line(done_text)
        case "waiting":
            render.line(f"order {answer.order}: the host is told; how it goes: leasehold nodedev orders --all")
        case _:
            word = "not done in time" if answer.state == "timed_out" else "failed"
            render.line(f"{word} (order {answer.order}): {answer.message}", err=True)
