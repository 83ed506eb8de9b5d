"""The commands. Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 unavailable."""

import sys
from typing import Final

import click

import leasehold
from leasehold.events.errors import InvalidInputError, LeaseholdError, RefusedError, UnavailableError
from leasehold.services import home
from leasehold.services.cli import asking, checking, domains, hostdevs, looking, nodedevs, past, render, scheduling
from leasehold.services.cli.archiving import archive
from leasehold.services.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    asynchronous,
)
from leasehold.services.cli.feeding import feed
from leasehold.services.cli.keys import keys
from leasehold.services.cli.nodedev import nodedev
from leasehold.services.cli.restoring import restore_ledger
from leasehold.services.cli.running import run, sources
from leasehold.services.cli.watching import watch
from leasehold.services.cli.xend import xend
from leasehold.services.cli.xendsim import xend_sim

_ARGUMENT_CHARS_MAX: Final = 4_096
_TOLD_CHARS_MAX: Final = 1_000


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
@click.option("--allow-create", is_flag=True, help="Let operators have devices made and destroyed on this host.")
@click.option("--manage", is_flag=True, help="Hand leased devices of this host over, and take them back (needs root).")
@click.option("--door", default="", metavar="PATH", help="Where hooks ask then, if not /run/leasehold/binder.sock.")
@sources
@asynchronous
async def up(
    data: str | None,
    cluster: str,
    host: str,
    nats: str,
    credentials: str,
    replicas: int,
    allocators: int,
    allow_create: bool,
    manage: bool,
    door: str,
    xend: str,
    *,
    libxl: bool,
    libvirt: str,
) -> None:
    """Start everything on this machine, and keep it running until Ctrl-C."""
    from leasehold.services.cli.starting import run_up
    from leasehold.services.poller.sources import source_word
    from leasehold.services.up import Options

    if door and not manage:
        raise InvalidInputError("hooks are heard where a binder runs: say --manage, too", field="door")
    directory = home.chosen_data_dir(data) or home.default_data_dir()
    options = Options(
        data=directory,
        cluster=cluster,
        host=host or home.own_host(),
        nats=nats,
        credentials=credentials,
        replicas=replicas,
        allocators=allocators,
        allow_create=allow_create,
        manage=manage,
        door=door,
        domains=source_word(xend=xend, libxl=libxl, libvirt=libvirt),
    )
    await run_up(options)


_ASKING = (*looking.COMMANDS, *past.COMMANDS, *asking.COMMANDS, *scheduling.COMMANDS)
_GROUPS = (run, keys, nodedev, watch, archive, feed, xend, xend_sim, restore_ledger)
for command in (*nodedevs.COMMANDS, *domains.COMMANDS, *hostdevs.COMMANDS, *_ASKING, *checking.COMMANDS, *_GROUPS):
    cli.add_command(command)


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
        sys.exit(EXIT_INTERRUPTED)
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
