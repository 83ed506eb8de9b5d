"""What the commands have in common: exit codes, options, a client, completion of names."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec

import click

from leasehold.events.errors import LeaseholdError
from leasehold.services.client import Client

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNAVAILABLE: Final = 4
EXIT_INTERRUPTED: Final = 130

_CREDENTIALS: Final = "leasehold.credentials"
_DRY_RUN: Final = "leasehold.dry_run"

P = ParamSpec("P")


def _keep_credentials(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta[_CREDENTIALS] = value


def _keep_dry_run(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_DRY_RUN] = value


def dry_run_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dry-run`, for whatever asks for something."""
    return click.option(
        "--dry-run", is_flag=True, expose_value=False, callback=_keep_dry_run,
        help="Only say how it would be decided now, and what would end by it.",
    )(function)  # fmt: skip


def is_dry_run() -> bool:
    """Whether nothing is to be done."""
    return bool(click.get_current_context().meta.get(_DRY_RUN))


def client_of(data: str | None) -> Client:
    """A client with the key that was named, or that of the data directory."""
    return Client(data, credentials=click.get_current_context().meta.get(_CREDENTIALS))


def names_ledger(data: str | None) -> bool:
    """Whether a ledger was named in the command itself, by its data directory or by a key."""
    return data is not None or click.get_current_context().meta.get(_CREDENTIALS) is not None


def has_credentials() -> bool:
    """Whether a key was named with `--credentials`."""
    return click.get_current_context().meta.get(_CREDENTIALS) is not None


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--data`, `--credentials` and `--json`, which most commands take."""
    function = click.option(
        "--credentials", metavar="FILE", expose_value=False, callback=_keep_credentials,
        help="Key made by `leasehold credentials add` (or LEASEHOLD_CREDENTIALS).",
    )(function)  # fmt: skip
    function = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(function)
    help_text = "Data directory of the `up` to talk to (or LEASEHOLD_DATA)."
    return click.option("--data", metavar="DIR", help=help_text)(function)


def listing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`common`, and `--csv`."""
    return common(click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")(function))


def asynchronous(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a coroutine as a command."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def awaited() -> None:
            await function(*args, **kwargs)

        try:
            asyncio.run(awaited())
        except KeyboardInterrupt:
            # How following ends, and nothing to be told of.
            sys.exit(EXIT_INTERRUPTED)

    return run


def complete_device(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of devices that begin with `text`; nothing if nobody answers at once."""

    async def names() -> list[str]:
        async with Client(patience_s=0.5) as client:
            return [row.name for row in await client.devices()]

    try:
        return [name for name in asyncio.run(names()) if name.startswith(text)]
    except LeaseholdError:
        return []
