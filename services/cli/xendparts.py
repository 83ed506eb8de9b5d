"""What the commands of `leasehold xend` have in common."""

import re
from typing import TYPE_CHECKING, Any, Final, cast

import click
import msgspec

from leasehold.services.cli import render

if TYPE_CHECKING:
    from leasehold.services.xend.client import XendClient

_SIZE: Final = re.compile(r"(\d{1,15})([kKmMgGtT]?)(?:i?[bB])?")
_MIB: Final = 1024 * 1024
_UNITS: Final = {"": 1, "k": 1024, "m": _MIB, "g": 1024 * _MIB, "t": 1024 * 1024 * _MIB}
_SHOWN: Final = ((1024 * _MIB, "GiB"), (_MIB, "MiB"))

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
domain_argument = click.argument("domain")


def client_of() -> "XendClient":
    """The client that the group made."""
    return cast("XendClient", click.get_current_context().obj)


def json_line(value: Any) -> None:
    """One object, one line. Names in JSON are text, and ports of USB are numbers here."""
    render.json_line(msgspec.to_builtins(value, str_keys=True))


class Size(click.ParamType[int]):
    """`512M`, `2G`, `536870912`: to bytes. Units are those of memory: a `K` is 1024 bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; a usage error names what would be right."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"{str(value)[:40]!r} is not a size; one looks like 512M, 2G or 536870912 (bytes)", param, ctx)
        return int(match[1]) * _UNITS[match[2].lower()]


def size_text(size_bytes: int) -> str:
    """A size for people: `512 MiB`, `16 GiB`."""
    for unit, name in _SHOWN:
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} B" if size_bytes else ""


def words(value: Any) -> str:
    """A field for people; one that holds others as `name=value name=value`."""
    if isinstance(value, dict):
        return " ".join(f"{name}={words(each)}" for name, each in value.items() if each not in ("", {}))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
