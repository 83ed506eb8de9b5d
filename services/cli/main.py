"""The commands. Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 unavailable."""

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec

import click

import leasehold
from leasehold.events.answers import Answer
from leasehold.events.errors import InvalidInputError, LeaseholdError, RefusedError, UnavailableError
from leasehold.events.inputs import Request
from leasehold.events.views import DeviceView
from leasehold.services import home
from leasehold.services.asking import confirm_free_request, lease_request, release_request, renew_request
from leasehold.services.cli import render
from leasehold.services.cli.keys import keys
from leasehold.services.cli.running import run
from leasehold.services.cli.values import Duration, LeaseId, time_text
from leasehold.services.client import Client

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNAVAILABLE: Final = 4

_KINDS: Final = ("device", "lease", "holder", "host", "principal")

_CREDENTIALS: Final = "leasehold.credentials"
_ARGUMENT_CHARS_MAX: Final = 4_096
_TOLD_CHARS_MAX: Final = 1_000

P = ParamSpec("P")


def _keep_credentials(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta[_CREDENTIALS] = value


def _client(data: str | None) -> Client:
    """A client with the key that was named, or that of the data directory."""
    return Client(data, credentials=click.get_current_context().meta.get(_CREDENTIALS))


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--data`, `--credentials` and `--json`, which most commands take."""
    function = click.option(
        "--credentials", metavar="FILE", expose_value=False, callback=_keep_credentials,
        help="Key made by `leasehold credentials add` (or LEASEHOLD_CREDENTIALS).",
    )(function)  # fmt: skip
    function = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(function)
    help_text = "Data directory of the `up` to talk to (or LEASEHOLD_DATA)."
    return click.option("--data", metavar="DIR", help=help_text)(function)


def _asynchronous(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a coroutine as a command."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def awaited() -> None:
            await function(*args, **kwargs)

        asyncio.run(awaited())

    return run


def _complete_device(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of devices that begin with `text`; nothing if nobody answers at once."""

    async def names() -> list[str]:
        async with Client(patience_s=0.5) as client:
            return [row.name for row in await client.devices()]

    try:
        return [name for name in asyncio.run(names()) if name.startswith(text)]
    except LeaseholdError:
        return []


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(leasehold.__version__, prog_name="leasehold")
def cli() -> None:
    """Hands out host devices: one owner at a time, with a history that can be proved."""


# --- running --------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--data", metavar="DIR", help="Where everything is kept (or LEASEHOLD_DATA).")
@click.option("--cluster", default=home.DEFAULT_CLUSTER, show_default=True, help="Name of the cluster.")
@click.option("--host", default="", help="Name of this host (or LEASEHOLD_HOST); by default the machine's.")
@click.option("--nats", default="", metavar="URL[,URL]", help="Use these running NATS servers instead of starting one.")
@click.option("--credentials", default="", metavar="DIR", help="The keys for them: keeper.json, allocator.json, …")
@click.option("--replicas", type=click.IntRange(1, 5), default=1, help="On how many of them the log is.")
@click.option("--allocators", type=click.IntRange(1, 8), default=1, help="How many; one of them decides.")
@_asynchronous
async def up(
    data: str | None, cluster: str, host: str, nats: str, credentials: str, replicas: int, allocators: int
) -> None:
    """Start everything on this machine, and keep it running until Ctrl-C."""
    from leasehold.services.cli.starting import run_up
    from leasehold.services.up import Options

    directory = home.chosen_data_dir(data) or home.default_data_dir()
    options = Options(
        data=directory,
        cluster=cluster,
        host=host or home.own_host(),
        nats=nats,
        credentials=credentials,
        replicas=replicas,
        allocators=allocators,
    )
    await run_up(options)


# --- looking --------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--host", default="", help="Only this host's.")
@_common
@_asynchronous
async def devices(data: str | None, as_json: bool, host: str) -> None:
    """List the devices: each below its parent, with its state and why."""
    async with _client(data) as client:
        rows = await client.devices(host=host)
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.devices(rows)


@cli.command()
@click.argument("name", shell_complete=_complete_device)
@click.option("--host", default="", help="On which host.")
@_common
@_asynchronous
async def show(data: str | None, as_json: bool, name: str, host: str) -> None:
    """Show one device (by name, key, address or sysfs path) or one lease (L4352)."""
    async with _client(data) as client:
        row = await client.show(name, host=host)
    if as_json:
        render.json_line(row)
    elif isinstance(row, DeviceView):
        render.device(row)
    else:
        render.lease(row)


@cli.command()
@click.option("--holder", default="", help="Only this holder's.")
@click.option("--all", "ended", is_flag=True, help="Those that have ended, too.")
@_common
@_asynchronous
async def leases(data: str | None, as_json: bool, holder: str, ended: bool) -> None:
    """List the leases, in the order of their grants."""
    async with _client(data) as client:
        rows = await client.leases(holder=holder, ended=ended)
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.leases(rows)


@cli.command()
@_common
@_asynchronous
async def hosts(data: str | None, as_json: bool) -> None:
    """List the hosts, and whether what is known of them is up to date."""
    async with _client(data) as client:
        rows = await client.hosts()
    if as_json:
        for row in rows:
            render.json_line(row)
    else:
        render.hosts(rows)


@cli.command()
@click.argument("name", shell_complete=_complete_device)
@click.option("--host", default="", help="On which host.")
@click.option("--kind", default="", type=click.Choice(("", *_KINDS)), help="What NAME is.")
@_common
@_asynchronous
async def history(data: str | None, as_json: bool, name: str, host: str, kind: str) -> None:
    """Tell what happened to a device, a lease, a holder, a host or a principal."""
    async with _client(data) as client:
        async for row in client.history(name, host=host, kind=kind):
            if as_json:
                render.json_line(row)
            else:
                render.history_row(row)


@cli.command()
@click.argument("name")
@click.option("--host", default="", help="On which host.")
@click.option("--for", "holder", default="", help="For whom a lease of the device is considered.")
@_common
@_asynchronous
async def explain(data: str | None, as_json: bool, name: str, host: str, holder: str) -> None:
    """Say why a device can or cannot be leased now, or how a request (by its id) was decided."""
    async with _client(data) as client:
        reading = await client.explain(name, host=host, holder=holder)
    if as_json:
        render.json_line(reading)
        return
    if reading.message:
        render.line(reading.message)
    for blocker in reading.blockers:
        render.line(f"  {blocker.rule}: {blocker.why}" + (f" (what helps: {blocker.help})" if blocker.help else ""))
    for lease_row in reading.leases:
        render.lease(lease_row)
    if reading.answer is not None:
        _show_answer(reading.answer, as_json=False)


@cli.command()
@_common
@_asynchronous
async def status(data: str | None, as_json: bool) -> None:
    """Show how it stands: the log, the hosts, the leases."""
    async with _client(data) as client:
        row = await client.status()
    if as_json:
        render.json_line(row)
        return
    stale = f" (out of date: {', '.join(row.hosts_stale)})" if row.hosts_stale else ""
    click.echo(f"cluster   {row.cluster}, ledger {row.ledger_id}, era {row.era}")
    click.echo(f"log       {row.sequence} records, the last of {time_text(row.decided_at_ns)}, chain {row.chain[:16]}…")
    click.echo(f"decider   {row.decider}")
    if row.grace_until_ns > time.time_ns():
        click.echo(f"grace     no lease expires before {time_text(row.grace_until_ns)}")
    click.echo(f"hosts     {row.hosts}{stale}")
    click.echo(f"devices   {row.devices}")
    click.echo(f"leases    {row.living_leases} living, {row.ending_devices} devices not free yet")


@cli.command()
@click.option("--since", type=click.IntRange(0, 2**53), default=None, metavar="POSITION", help="Begin behind it.")
@_common
@_asynchronous
async def watch(data: str | None, as_json: bool, since: int | None) -> None:
    """Follow the log as it grows, until Ctrl-C."""
    from leasehold.services.cli.watching import follow

    async with _client(data) as client:
        async for row in follow(client, since):
            if as_json:
                render.json_line(row)
            else:
                render.history_row(row)


@cli.command()
@_common
@_asynchronous
async def verify(data: str | None, as_json: bool) -> None:
    """Check the whole log: chain, order, decisions, and what was kept of it elsewhere."""
    from leasehold.services.cli.verifying import run_verify, verify_through

    client = _client(data)
    if client.has_key:
        is_sound = await verify_through(client, as_json=as_json)
    else:
        is_sound = await run_verify(home.find_data_dir(data), as_json=as_json)
    if not is_sound:
        sys.exit(EXIT_FAILED)


# --- asking ---------------------------------------------------------------------------------------------------------


async def _ask(data: str | None, request: Request, *, as_json: bool) -> None:
    async with _client(data) as client:
        answer = await client.answer_to(request)
    _show_answer(answer, as_json=as_json)
    if answer.outcome == "refused":
        sys.exit(EXIT_REFUSED)
    if answer.outcome == "invalid":
        sys.exit(EXIT_USAGE)


def _show_answer(answer: Answer, *, as_json: bool) -> None:
    if answer.outcome == "refused":
        if as_json:
            render.json_line(render.refusal_object(answer))
        else:
            render.refused(answer)
    elif answer.outcome == "invalid":
        render.line(answer.message, err=True)
    elif as_json:
        render.json_line(render.lease_object(answer))
    elif answer.outcome in ("granted", "renewed"):
        render.granted(answer)
    else:
        render.line(f"{answer.outcome}: {', '.join(answer.devices)} ({answer.state or 'done'})")


_REQUEST_ID: Final = click.option(
    "--request-id", default=None, help="Your own name for this request: asking again with it is safe."
)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="DEVICE...", shell_complete=_complete_device)
@click.option("--for", "holder", required=True, metavar="HOLDER", help="For whom: a domain, a job, a person.")
@click.option("--ttl", "ttl_ms", type=Duration(), default="30m", show_default=True, help="Ends unless renewed.")
@click.option("--host", default="", help="On which host the names are.")
@click.option("--force", is_flag=True, help="Take a device although the host itself lives on it.")
@_REQUEST_ID
@_common
@_asynchronous
async def lease(
    data: str | None,
    as_json: bool,
    names: tuple[str, ...],
    holder: str,
    ttl_ms: int,
    host: str,
    force: bool,
    request_id: str | None,
) -> None:
    """Lease devices, all or none."""
    request = lease_request(names, holder=holder, ttl_ms=ttl_ms, host=host, force=force, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@cli.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@click.option("--ttl", "ttl_ms", type=Duration(), default=0, help="A new time to live; by default as before.")
@_REQUEST_ID
@_common
@_asynchronous
async def renew(
    data: str | None, as_json: bool, lease_id: int, token: int, ttl_ms: int, request_id: str | None
) -> None:
    """Keep a lease."""
    request = renew_request(lease_id, token, ttl_ms=ttl_ms, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@cli.command()
@click.argument("lease_id", type=LeaseId(), metavar="LEASE")
@click.option("--token", type=int, required=True, help="The lease's token.")
@_REQUEST_ID
@_common
@_asynchronous
async def release(data: str | None, as_json: bool, lease_id: int, token: int, request_id: str | None) -> None:
    """Give a lease back."""
    request = release_request(lease_id, token, request_id=request_id)
    await _ask(data, request, as_json=as_json)


@cli.command("confirm-free")
@click.argument("device", shell_complete=_complete_device)
@click.option("--reason", required=True, help="How you know; it stands in the log with your name.")
@click.option("--host", default="", help="On which host.")
@_REQUEST_ID
@_common
@_asynchronous
async def confirm_free(
    data: str | None, as_json: bool, device: str, reason: str, host: str, request_id: str | None
) -> None:
    """Say by name that nobody uses a device whose lease has ended."""
    request = confirm_free_request(device, reason, host=host, request_id=request_id)
    await _ask(data, request, as_json=as_json)


cli.add_command(run)
cli.add_command(keys)


# --- the shell ------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `source <(leasehold completion bash)`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "leasehold", "_LEASEHOLD_COMPLETE").source())


def main() -> None:
    """The entry point: every error becomes a line on standard error and an exit code."""
    try:
        _check_arguments(sys.argv[1:])
        cli(prog_name="leasehold")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - nobody at a terminal is helped by where in our code it happened
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        click.echo(f"leasehold: {_told(cause)}", err=True)
        sys.exit(_exit_code(cause))


def _check_arguments(arguments: list[str]) -> None:
    """Raises InvalidInputError for what no option of ours can take."""
    for number, argument in enumerate(arguments, start=1):
        if len(argument) > _ARGUMENT_CHARS_MAX:
            raise InvalidInputError(f"{number} is longer than {_ARGUMENT_CHARS_MAX} characters", field="argument")
        if not argument.isascii() and any("\ud800" <= each <= "\udfff" for each in argument):
            raise InvalidInputError(f"{number} is not text: {argument[:40]!r}", field="argument")


def _told(error: BaseException) -> str:
    text = f"failed ({error!r})"
    if isinstance(error, LeaseholdError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return render.shown(text if len(text) <= _TOLD_CHARS_MAX else f"{text[:_TOLD_CHARS_MAX]}…")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, InvalidInputError):
        return EXIT_USAGE
    if isinstance(error, RefusedError):
        return EXIT_REFUSED
    return EXIT_UNAVAILABLE if isinstance(error, UnavailableError) else EXIT_FAILED
