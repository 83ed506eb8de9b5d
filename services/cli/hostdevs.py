"""Host devices: those of a domain leased and released together, which are in use, and where the witnesses differ."""

from collections.abc import Callable
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.inputs import GONE_MS
from leasehold.events.views import DriftView, HostdevView
from leasehold.services.asking import prepare_request, reattach_request
from leasehold.services.cli import render_hostdevs
from leasehold.services.cli.asking import ask_and_tell, request_id_option, stub_options
from leasehold.services.cli.common import asynchronous, client_of, common, complete_device, listing
from leasehold.services.cli.domains import complete_domain
from leasehold.services.cli.rows import Form, form_of, write
from leasehold.services.cli.values import Duration


def _one_of(field: str, **flags: bool) -> str:
    """The one that was asked for; empty: none was.

    Raises:
        InvalidInputError: several were.
    """
    asked = [name for name, is_set in flags.items() if is_set]
    if len(asked) > 1:
        names = " and ".join(f"--{name}" for name in asked)
        raise InvalidInputError(f"only one of {names} can be had; leave both out for both", field=field)
    return asked[0] if asked else ""


def _bus_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--usb", is_flag=True, help="Only USB devices.")(function)
    return click.option("--pci", is_flag=True, help="Only PCI devices.")(function)


@click.command()
@click.argument("domain", shell_complete=complete_domain)
@click.option("--for", "holder", required=True, metavar="HOLDER", help="For whom: a domain, a job, a person.")
@_bus_options
@click.option("--ttl", "ttl_ms", type=Duration(), default="30m", show_default=True, help="Until the domain is seen.")
@click.option("--host", default="", help="On which host the domain is.")
@click.option("--force", is_flag=True, help="Take a device although the host itself lives on it.")
@click.option(
    "--gone", "gone_ms", type=Duration(), default=GONE_MS, help="Ends so long after the domain is gone.  [default: 1m]"
)
@click.option("--keep", is_flag=True, help="The domain is only named, and the lease expires as any other.")
@stub_options
@click.option("--no-wait", is_flag=True, help="Do not wait until the devices are handed over.")
@request_id_option
@common
@asynchronous
async def prepare(
    data: str | None,
    as_json: bool,
    domain: str,
    pci: bool,
    usb: bool,
    no_wait: bool,
    **said: Any,
) -> None:
    """Lease all devices that a DOMAIN's configuration claims (or only PCI, only USB), all or none.

    Those that leases hold for it already are left out. On managed hosts it waits until they are handed over.
    """
    request = prepare_request(domain, bus=_one_of("usb", pci=pci, usb=usb), **said)
    await ask_and_tell(data, request, as_json=as_json, is_waited_for=not no_wait)


@click.command()
@click.argument("domain", shell_complete=complete_domain)
@_bus_options
@click.option("--host", default="", help="Only those on this host.")
@request_id_option
@common
@asynchronous
async def reattach(
    data: str | None, as_json: bool, domain: str, pci: bool, usb: bool, host: str, request_id: str | None
) -> None:
    """Release all of your leases that are for a DOMAIN (or only PCI, only USB); hosts take the devices back.

    DOMAIN is its uuid, or while it is known also its name, key or id.
    """
    bus = _one_of("usb", pci=pci, usb=usb)
    await ask_and_tell(data, reattach_request(domain, host=host, bus=bus, request_id=request_id), as_json=as_json)


@click.command()
@click.option("--host", default="", help="Only this host's.")
@_bus_options
@click.option("--active", is_flag=True, help="Only those in use: leased, or a domain has them.")
@click.option("--inactive", is_flag=True, help="Only those bound to a stub driver, and nobody's.")
@click.option("--domain", default="", shell_complete=complete_domain, help="Only those that this domain uses.")
@listing
@asynchronous
async def hostdevs(
    data: str | None,
    as_json: bool,
    as_csv: bool,
    host: str,
    pci: bool,
    usb: bool,
    active: bool,
    inactive: bool,
    domain: str,
) -> None:
    """List the devices that are in use or held ready, with who uses them: of all hosts and all hypervisors."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    bus, state = _one_of("usb", pci=pci, usb=usb), _one_of("inactive", active=active, inactive=inactive)
    async with client_of(data) as client:
        rows = await client.hostdevs(host=host, bus=bus, state=state, domain=domain)
    write(rows, HostdevView, form, render_hostdevs.hostdevs)


@click.command()
@click.argument("name", default="", required=False, metavar="[DEVICE]", shell_complete=complete_device)
@click.option("--host", default="", help="Only this host's.")
@listing
@asynchronous
async def drift(data: str | None, as_json: bool, as_csv: bool, name: str, host: str) -> None:
    """List devices (or look at one) about which ledger, hypervisors and host do not agree, and what to do."""
    form = form_of(as_json=as_json, as_csv=as_csv)
    async with client_of(data) as client:
        rows = await client.drifts(host=host, device=name)
    if form is Form.TABLE:
        render_hostdevs.drifts(rows)
    else:
        write(rows, DriftView, form, render_hostdevs.drifts)


COMMANDS: Final = (prepare, reattach, hostdevs, drift)
