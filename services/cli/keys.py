"""`leasehold credentials`: who is let in to the bus."""

from pathlib import Path
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.services import bus, credentials, home, permissions
from leasehold.services.cli import render
from leasehold.services.cli.values import time_text

_ROLES: Final = click.Choice(tuple(permissions.roles()))
_DATA: Final = click.option("--data", metavar="DIR", help="Data directory of the server (or LEASEHOLD_DATA).")


@click.group("credentials")
def keys() -> None:
    """Make, list and remove the keys with which others come to the bus."""


def _directory(data: str | None) -> Path:
    chosen = home.chosen_data_dir(data)
    return chosen if chosen is not None else home.find_data_dir(None)


def _reached(directory: Path, url: str) -> tuple[str, ...]:
    """Where the bus of a data directory is, as far as it is known."""
    if url:
        return tuple(url.split(","))
    try:
        return tuple(home.read_connection(directory).urls)
    except UnavailableError:
        return ()


def _pem(ca: str | None) -> str:
    if not ca:
        return ""
    try:
        return Path(ca).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{ca} cannot be read ({error})", field="tls_ca") from error


@keys.command()
@click.argument("role", type=_ROLES)
@click.argument("name")
@click.option("--out", metavar="FILE", help="Where to write the key; by default NAME.json here.")
@click.option("--cluster", default="", help="Of a register that is begun now.")
@click.option("--url", default="", metavar="URL[,URL]", help="Where the bus is, as it is reached from there.")
@click.option("--tls-ca", metavar="FILE", help="Whose certificates to believe, in PEM.")
@_DATA
def add(role: str, name: str, out: str | None, cluster: str, url: str, tls_ca: str | None, data: str | None) -> None:
    """Make a key for a principal, and let it in: at once, if the server of the data directory runs.

    NAME is the principal's; for an agent the host's. The file (mode 0600) is all that it needs:
    `--credentials FILE` or LEASEHOLD_CREDENTIALS.
    """
    directory = _directory(data)
    if cluster:
        home.make_private_dir(directory)
    path = Path(out or f"{name}.json").absolute()
    permissions.principal_of(role, name)
    if path.exists():
        raise InvalidInputError(f"{path} is there already; name another file", field="out")
    is_written = False
    try:
        with credentials.changing(directory, cluster) as register:
            made = credentials.new_credential(
                role, name, register.cluster, urls=_reached(directory, url), ca_pem=_pem(tls_ca)
            )
            credentials.let_in(register, made.user)
            # First the file: who is registered without a key could never come in, and would be in the way.
            credentials.write_credential(path, made)
            is_written = True
    except UnavailableError:
        if is_written:
            # Nobody knows this key.
            path.unlink(missing_ok=True)
        raise
    is_running = bus.take_up(directory)
    render.line(f"{role} {name}: {path}" + ("" if is_running else " (let in when the server starts)"))


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_DATA
def list_(data: str | None, as_json: bool) -> None:
    """Show who is let in, since when, and what the bus has refused them."""
    directory = _directory(data)
    register, refused = credentials.registered(directory), bus.refused_in(directory)
    rows = [_row(user, refused.pop(user.principal, bus.Refused())) for user in register.users]
    strangers = [
        {"role": "", "name": who, "public_key": "", "since_ns": 0, **_refused(counted)}
        for who, counted in refused.items()
    ]
    for row in rows + strangers:
        if as_json:
            render.json_line(row)
        else:
            _tell(row)


def _refused(counted: bus.Refused) -> dict[str, Any]:
    return {"refused": counted.count, "refused_last": counted.last, "refused_at_ns": counted.at_ns}


def _row(user: permissions.User, counted: bus.Refused) -> dict[str, Any]:
    told = {"role": user.role, "name": user.name, "public_key": user.public_key, "since_ns": user.since_ns}
    return told | _refused(counted)


def _tell(row: dict[str, Any]) -> None:
    since = f"since {time_text(row['since_ns'])}" if row["since_ns"] else "not registered"
    render.line(f"{row['role'] or '-':10} {row['name']:20} {row['public_key'] or '-':56} {since}")
    if row["refused"]:
        render.line(f"{'':10} refused {row['refused']} times, last {row['refused_last']}")


@keys.command()
@click.argument("name")
@click.option("--role", type=_ROLES, default=None, help="Where several have that name.")
@_DATA
def remove(name: str, role: str | None, data: str | None) -> None:
    """Let somebody in no more. A connection that is open is cut."""
    directory = _directory(data)
    with credentials.changing(directory) as register:
        found = [user for user in register.users if user.name == name and role in (None, user.role)]
        if not found:
            raise InvalidInputError(f"nobody is registered as {name!r}", field="name")
        if len(found) > 1:
            raise InvalidInputError(
                f"{', '.join(user.role for user in found)} have that name; say --role", field="role"
            )
        register.users.remove(found[0])
    is_running = bus.take_up(directory)
    render.line(f"{found[0].role} {name} is let in no more" + ("" if is_running else " when the server starts"))


@keys.command()
@_DATA
def reload(data: str | None) -> None:
    """Let the running server take up the register, which was copied here from another server of the same cluster."""
    if not bus.take_up(_directory(data)):
        raise UnavailableError("no server runs there")


@keys.command("show-config")
@_DATA
def show_config(data: str | None) -> None:
    """Print what a NATS server that somebody else runs must be told: accounts, users and their permissions."""
    register = credentials.registered(_directory(data))
    texts = permissions.render(register.users, register.cluster)
    shipped = (permissions.folder() / "server.conf").read_text(encoding="utf-8")
    accounts = shipped[shipped.index("# Two accounts") :]
    for account, text in texts.items():
        accounts = accounts.replace(f'include "users-{account}.conf"', text.rstrip())
    click.echo(
        f"# And for the promise that what was answered is kept: jetstream {{ sync_interval: always }}\n{accounts}"
    )
