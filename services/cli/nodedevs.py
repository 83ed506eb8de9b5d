"""Node devices: lists by what they can do and where they sit, one by any name; as a tree, and as libvirt's XML."""

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.views import DeviceView
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous, client_of, common, complete_device, listing
from leasehold.services.cli.moments import Asked
from leasehold.services.cli.past import NOW, archive_option, at_option, past_of
from leasehold.services.cli.rows import Form, place_text, write, write_past
from leasehold.services.nodedev.tree import tree_lines
from leasehold.services.nodedev.xml import device_xml, devices_xml


class Shape(Enum):
    """How a list of devices is written."""

    TABLE = "table"
    TREE = "tree"
    COUNT = "count"
    XML = "xml"
    JSON = "json"
    CSV = "csv"


def _shape_of(**flags: bool) -> Shape:
    """The one that was asked for.

    Raises:
        InvalidInputError: several were.
    """
    asked = [name for name, is_set in flags.items() if is_set]
    if len(asked) > 1:
        raise InvalidInputError(f"only one of {', '.join(f'--{name}' for name in asked)} can be had", field=asked[-1])
    return Shape(asked[0]) if asked else Shape.TABLE


def _complete(name: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
        from leasehold.projections import nodedev

        return [word for word in getattr(nodedev, name) if word.startswith(text)]

    return complete


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """What may be said of the devices of a list; all of it must hold."""
    for option in (
        click.option("--driver", default="", help="Only those bound to this driver; `none`: to none."),
        click.option(
            "--parent", default="", metavar="DEVICE", shell_complete=complete_device,
            help="Only those right below it; `computer`: the top.",
        ),
        click.option("--bus", default="", shell_complete=_complete("BUSES"), help="Only those on it: pci, usb, scsi."),
        click.option(
            "--cap", default="", metavar="TYPE[,TYPE]", shell_complete=_complete("CAPABILITY_TYPES"),
            help="Only those with this capability, in libvirt's words: net, scsi_host, vports.",
        ),
        click.option("--host", default="", help="Only this host's."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command()
@_filters
@click.option("--tree", "as_tree", is_flag=True, help="As `virsh nodedev-list --tree` shows them.")
@click.option("--count", "as_count", is_flag=True, help="Only how many there are.")
@click.option("--xml", "as_xml", is_flag=True, help="As libvirt describes them.")
@at_option
@archive_option
@listing
@asynchronous
async def devices(
    data: str | None,
    as_json: bool,
    as_csv: bool,
    archive: str | None,
    at: Asked | None,
    as_xml: bool,
    as_count: bool,
    as_tree: bool,
    **asked: str,
) -> None:
    """List the devices: each below its parent, with its state and why; as they are, or were at a moment."""
    shape = _shape_of(json=as_json, csv=as_csv, xml=as_xml, count=as_count, tree=as_tree)
    if at is not None or archive is not None:
        await _devices_at(data, archive, at or NOW, shape, asked)
        return
    async with client_of(data) as client:
        if shape is Shape.COUNT:
            click.echo(await client.count(**asked))
            return
        rows = await client.devices(**asked, present=_is_of_present(shape))
    if shape is Shape.XML:
        _echo_xml(rows)
    else:
        write(rows, DeviceView, _form(shape), _table(shape))


async def _devices_at(data: str | None, archive: str | None, at: Asked, shape: Shape, asked: dict[str, str]) -> None:
    async with past_of(data, archive) as past:
        if shape is Shape.COUNT:
            count, place = await past.count(at.moment, **asked)
            click.echo(count)
            render.line(place_text(place, [at]), err=True)
            return
        rows = past.devices(at.moment, **asked, present=_is_of_present(shape))
        if shape is Shape.XML:
            _echo_xml(await rows.all())
            render.line(place_text(rows.place, [at]), err=True)
        else:
            await write_past(rows, DeviceView, _form(shape), _table(shape), asked=[at])


def _is_of_present(shape: Shape) -> bool:
    """Neither a tree nor XML can say that a device is missing."""
    return shape in (Shape.TREE, Shape.XML)


def _form(shape: Shape) -> Form:
    return {Shape.JSON: Form.JSON, Shape.CSV: Form.CSV}.get(shape, Form.TABLE)


def _table(shape: Shape) -> Callable[[list[DeviceView]], None]:
    return _echo_trees if shape is Shape.TREE else render.devices


def _echo_xml(rows: list[DeviceView]) -> None:
    for line in devices_xml(rows):
        click.echo(line)


@click.command()
@click.argument("name", shell_complete=complete_device)
@click.option("--host", default="", help="On which host.")
@click.option("--xml", "as_xml", is_flag=True, help="As `virsh nodedev-dumpxml` describes it.")
@at_option
@archive_option
@common
@asynchronous
async def device(
    data: str | None, as_json: bool, archive: str | None, at: Asked | None, as_xml: bool, host: str, name: str
) -> None:
    """Describe one device, by node-device name, key, address or sysfs path; as it is, or was known at a moment."""
    shape = _shape_of(json=as_json, xml=as_xml)
    if at is None and archive is None:
        async with client_of(data) as client:
            _echo_device(await client.device(name, host=host), shape)
        return
    at = at or NOW
    async with past_of(data, archive) as past:
        rows = past.devices(at.moment, host=host, device=name)
        if shape is Shape.XML:
            (row,) = await rows.all()
            _echo_device(row, shape)
            render.line(place_text(rows.place, [at]), err=True)
        else:
            await write_past(rows, DeviceView, _form(shape), lambda found: render.device(*found), asked=[at])


def _echo_device(row: DeviceView, shape: Shape) -> None:
    if shape is Shape.XML:
        click.echo(device_xml(row), nl=False)
    elif shape is Shape.JSON:
        render.json_line(row)
    else:
        render.device(row)


# --- trees ----------------------------------------------------------------------------------------------------------


def _echo_trees(rows: list[DeviceView]) -> None:
    hosts = list(dict.fromkeys(row.host for row in rows))
    for host in hosts:
        if len(hosts) > 1:
            render.line(f"host {host}")
        for line in tree_lines([row for row in rows if row.host == host]):
            render.line(line)


COMMANDS: Final = (devices, device)
