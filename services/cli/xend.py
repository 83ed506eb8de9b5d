"""`leasehold xend`: everything that a xend can be asked, from a shell. It needs no cluster, and changes no ledger."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, SxpError
from leasehold.services.cli import render, xenddevices
from leasehold.services.cli.common import asynchronous
from leasehold.services.cli.values import Duration, duration_text
from leasehold.services.cli.xendparts import (
    Size,
    as_json_option,
    client_of,
    domain_argument,
    json_line,
    size_text,
    words,
)
from leasehold.services.xend import sxp
from leasehold.services.xend.model import SHUTDOWN_REASONS, STATES, Domain, DomainConfig
from leasehold.services.xend.sxp import Printable


@click.group()
@click.option(
    "--address",
    "address",
    metavar="ADDRESS",
    envvar="LEASEHOLD_XEND",
    default=None,
    help="unix:/PATH, http://HOST:PORT, xmlrpc:/PATH or xmlrpc://HOST:PORT (or LEASEHOLD_XEND); by default the first "
    "of the usual three at which a xend answers.",
)
@click.option(
    "--timeout",
    "timeout_ms",
    type=Duration(),
    default=None,
    help="For every request; by default 30s, and 15m for what xend waits for itself.",
)
@click.pass_context
def xend(context: click.Context, address: str | None, timeout_ms: int | None) -> None:
    """Ask the xend of Xen up to 4.4. DOMAIN is a name, domid or uuid; xend looks for them in this order."""
    from leasehold.services.xend.client import LONG_TIMEOUT_S, TIMEOUT_S, XendClient

    given_s = None if timeout_ms is None else timeout_ms / 1000
    context.obj = XendClient(address, timeout_s=given_s or TIMEOUT_S, long_timeout_s=given_s or LONG_TIMEOUT_S)


# --- domains --------------------------------------------------------------------------------------------------------


@xend.command("list")
@click.option("--state", type=click.Choice(STATES), default="all", show_default=True, help="Only those in it.")
@click.option("--names", is_flag=True, help="Only their names: one request.")
@as_json_option
@asynchronous
async def list_(as_json: bool, names: bool, state: str) -> None:
    """List the domains. Only `all` has every one of them: `running` leaves out what is paused."""
    if names:
        for name in await client_of().get_domains(state):
            if as_json:
                json_line({"name": name})
            else:
                render.line(name)
        return
    found = sorted(await client_of().domains(state), key=lambda each: (each.domid < 0, each.domid, each.name))
    if as_json:
        for each in found:
            json_line(each)
        return
    columns = ("name", "domid", "state", "memory", "max memory", "vcpus", "cpu time", "devices", "uuid")
    render.table(columns, [_domain_cells(each) for each in found])


def _domain_cells(domain: Domain) -> tuple[str, ...]:
    parts = [each.address for each in domain.pci]
    parts += [bus_id for each in domain.usb for bus_id in each.ports.values() if bus_id]
    parts += [each for each in domain.usb_host if each.startswith("host:")]
    return (
        domain.name,
        str(domain.domid) if domain.domid >= 0 else "",
        domain.state,
        size_text(domain.memory_bytes),
        size_text(domain.max_memory_bytes),
        str(domain.vcpus),
        _seconds_text(domain.live.cpu_time_s) if domain.live else "",
        " ".join(parts),
        domain.uuid,
    )


def _seconds_text(seconds: float) -> str:
    return duration_text(int(seconds * 1000)) if seconds < 10**9 else ""


@xend.command()
@domain_argument
@as_json_option
@asynchronous
async def show(as_json: bool, domain: str) -> None:
    """Show one domain, with its devices and how it fares."""
    found = await client_of().get_domain(domain)
    if as_json:
        json_line(found)
        return
    told = msgspec.to_builtins(found)
    told |= {name: size_text(told.get(name, 0)) for name in ("memory_bytes", "max_memory_bytes")}
    _echo_fields(told)


def _echo_fields(told: dict[str, Any]) -> None:
    rows: list[tuple[str, str]] = []
    for name, value in told.items():
        label = name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")
        if isinstance(value, list | tuple):
            rows += [(label, words(each)) for each in value]
        elif value != "":
            rows.append((label, words(value)))
    render.table(("field", "value"), rows)


@xend.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), metavar="FILE")
@click.option("--start", "is_start", is_flag=True, help="Wait for its devices, and let it run.")
@as_json_option
@asynchronous
async def create(as_json: bool, is_start: bool, file: Path) -> None:
    """Make the domain that FILE (`-`: standard input) describes: SXP `(vm …)`, or JSON. It is paused then."""
    client = client_of()
    made = await client.create(_config(file))
    if is_start:
        # By its uuid: another may have its name by the time.
        await client.wait_for_devices(made.uuid)
        await client.unpause(made.uuid)
        made = await client.get_domain(made.uuid)
    if as_json:
        json_line(made)
    else:
        render.line(f"{made.name} is domain {made.domid}, {made.state}")


@xend.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), metavar="FILE")
@asynchronous
async def define(file: Path) -> None:
    """Make xend know the domain that FILE describes, without starting it."""
    await client_of().define(_config(file))


def _config(file: Path) -> DomainConfig | Printable:
    raw = sys.stdin.buffer.read(limits.SXP_BYTES_MAX + 1) if str(file) == "-" else file.read_bytes()
    if not raw.lstrip().startswith(b"{"):
        try:
            values = sxp.read_all(raw)
        except SxpError as error:
            raise InvalidInputError(str(error), field="file") from error
        if len(values) != 1 or not isinstance(values[0], list):
            # As xend takes it; what stands behind a list that was closed too early would be lost.
            raise InvalidInputError(
                f"one list such as (vm …) is wanted, and {len(values)} values are here", field="file"
            )
        return values[0]
    try:
        return msgspec.json.decode(raw, type=DomainConfig)
    except msgspec.DecodeError as error:
        raise InvalidInputError(str(error), field="file") from error


def _simple(name: str, help_text: str, method: str) -> None:
    """A command that is told nothing but the domain."""

    @xend.command(name, help=help_text)
    @domain_argument
    @asynchronous
    async def command(domain: str) -> None:
        await getattr(client_of(), method)(domain)


_simple("wait-for-devices", "Wait until all devices of DOMAIN are connected.", "wait_for_devices")
_simple("pause", "Give DOMAIN no CPU.", "pause")
_simple("unpause", "Let DOMAIN run.", "unpause")
_simple("reboot", "Ask DOMAIN to reboot, which it need not do.", "reboot")
_simple("destroy", "End DOMAIN at once; its disks may suffer.", "destroy")
_simple("reset", "End DOMAIN at once, and start it anew.", "reset")
_simple("start", "Start DOMAIN, which xend knows and which does not run.", "start")
_simple("delete", "Make xend forget DOMAIN, which does not run.", "delete")


@xend.command()
@domain_argument
@click.option("--reason", type=click.Choice(SHUTDOWN_REASONS), default="poweroff", show_default=True)
@asynchronous
async def shutdown(domain: str, reason: str) -> None:
    """Ask DOMAIN to shut down, which it need not do."""
    await client_of().shutdown(domain, reason)


@xend.command()
@domain_argument
@click.argument("name")
@asynchronous
async def rename(domain: str, name: str) -> None:
    """Give DOMAIN another NAME."""
    await client_of().rename(domain, name)


@xend.command()
@domain_argument
@click.argument("key")
@asynchronous
async def sysrq(domain: str, key: str) -> None:
    """Press a KEY of SysRq in DOMAIN: a letter, such as `h` for help or `s` to sync."""
    await client_of().sysrq(domain, key)


@xend.command()
@domain_argument
@click.argument("path")
@asynchronous
async def save(domain: str, path: str) -> None:
    """Write DOMAIN to the file PATH on its host, and end it."""
    await client_of().save(domain, path)


@xend.command()
@click.argument("path")
@asynchronous
async def restore(path: str) -> None:
    """Bring a domain back from the file PATH on the host."""
    await client_of().restore(path)


@xend.command()
@domain_argument
@click.argument("path")
@click.option("--live", is_flag=True, help="While it runs.")
@click.option("--crash", is_flag=True, help="And destroy it then.")
@click.option("--reset", is_flag=True, help="And start it anew then.")
@asynchronous
async def dump(domain: str, path: str, live: bool, crash: bool, reset: bool) -> None:
    """Write the memory of DOMAIN to the file PATH on its host."""
    await client_of().dump(domain, path, live=live, crash=crash, reset=reset)


@xend.command()
@domain_argument
@click.argument("memory", type=Size())
@asynchronous
async def memory(domain: str, memory: int) -> None:
    """Set how much MEMORY DOMAIN is to have: 512M, 2G, or bytes."""
    await client_of().set_memory(domain, memory)


@xend.command("max-memory")
@domain_argument
@click.argument("memory", type=Size())
@asynchronous
async def max_memory(domain: str, memory: int) -> None:
    """Set how much MEMORY DOMAIN may have: 512M, 2G, or bytes."""
    await client_of().set_max_memory(domain, memory)


@xend.command()
@domain_argument
@click.argument("number", type=click.IntRange(1, 4096), required=False)
@as_json_option
@asynchronous
async def vcpus(as_json: bool, domain: str, number: int | None) -> None:
    """Show what the virtual CPUs of DOMAIN do, or set how many are to be online."""
    if number is not None:
        await client_of().set_vcpus(domain, number)
        return
    found = await client_of().vcpus(domain)
    if as_json:
        for each in found:
            json_line(each)
        return
    columns = ("number", "online", "running", "blocked", "cpu", "cpu_time")
    render.table(columns, [[each.get(name, "") for name in columns] for each in found])


# --- the host -------------------------------------------------------------------------------------------------------


@xend.command()
@as_json_option
@asynchronous
async def node(as_json: bool) -> None:
    """Show the host."""
    found = await client_of().get_node()
    if as_json:
        json_line(found)
        return
    told = msgspec.to_builtins(found)
    told |= {name: size_text(told.get(name, 0)) for name in ("total_memory_bytes", "free_memory_bytes")}
    _echo_fields(told)


@xend.command("node-shutdown")
@click.confirmation_option(prompt="Shut down the host, with all its domains?")
@asynchronous
async def node_shutdown() -> None:
    """Ask for the host to be shut down; xend 4.4 answers and does nothing. Over HTTP only."""
    await client_of().node_shutdown()


@xend.command("node-restart")
@click.confirmation_option(prompt="Restart the host, with all its domains?")
@asynchronous
async def node_restart() -> None:
    """Ask for the host to be restarted; xend 4.4 answers and does nothing. Over HTTP only."""
    await client_of().node_restart()


@xend.command()
@click.option("--clear", is_flag=True, help="Forget them instead.")
@asynchronous
async def dmesg(clear: bool) -> None:
    """Print the hypervisor's messages."""
    if clear:
        await client_of().dmesg_clear()
    else:
        _echo_text(await client_of().dmesg())


@xend.command()
@asynchronous
async def log() -> None:
    """Print xend's own log."""
    _echo_text(await client_of().log())


def _echo_text(text: bytes) -> None:
    for line in text.decode("utf-8", "replace").splitlines():
        render.line(line.expandtabs())


for _each in xenddevices.COMMANDS:
    xend.add_command(_each)
