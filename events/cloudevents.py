"""An event of the feed as CloudEvents 1.0 in binary mode over NATS: attributes are headers, the event is the body.

Header names are case-sensitive on NATS; ours are written, and looked for, in lower case. Values are percent-encoded as
the NATS binding says: the space, `"`, `%` and everything outside of U+0021 to U+007E.

Source: cloudevents/spec 1.0.2, `cloudevents/bindings/nats-protocol-binding.md`.
"""

import functools
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from leasehold.events.errors import InvalidInputError

SPEC_VERSION: Final = "1.0"
CONTENT_TYPE: Final = "application/json"
TYPE_PREFIX: Final = "org.leasehold."
"""In front of an event's tag: `org.leasehold.lease_granted.v2`."""
SCHEMA_PREFIX: Final = "urn:leasehold:schema:"
"""In front of an event's tag: the name of the schema of its body."""
HEADER_PREFIX: Final = "ce-"
SEQUENCE_DIGITS: Final = 16
"""Positions are below 2**53: padded to this, their order as texts is their order."""
STREAM_SEQUENCE_HEADER: Final = "Nats-Sequence"
"""The server says where in EVENTS a message is kept, live or read back."""
STREAM_SUBJECT_HEADER: Final = "Nats-Subject"
"""Under which subject it is kept. Where a message comes under another one, it is not the feed that has sent it."""
_SOURCE: Final = re.compile(r"urn:leasehold:([a-z0-9_-]+):([0-9a-f]{16}):(0|[1-9][0-9]*)")
_TIME: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{9})Z")
_NEEDED: Final = ("specversion", "id", "source", "type", "time", "position", "prevposition", "part", "parts")
_PLAIN: Final = re.compile(rb"[!#$&-~]*")
"""All of U+0021 to U+007E but `"` and `%`."""


class Attributes(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the headers of one message of the feed say.

    `tag`: the event's type with its version; `at_ns`: when it was decided; `previous`: the position of the event that
    was told before this one of the same host (of no host, where it has none), 0 if there was none; `part` of `parts`:
    an event is told once for each device, and else each host, that it tells of; `cause`: `principal/request id`, where
    a request caused it; `subject`: what it is about, for people.
    """

    cluster: str
    ledger_id: str
    era: int
    position: int
    part: int
    parts: int
    previous: int
    tag: str
    at_ns: int
    subject: str = ""
    tenant: str = ""
    cause: str = ""


def event_id(position: int, part: int) -> str:
    """The id of a message of the feed: the position, and behind a dot the part, for all parts but the first."""
    return f"{position}.{part}" if part else str(position)


def source_of(cluster: str, ledger_id: str, era: int) -> str:
    """Which log tells."""
    return f"urn:leasehold:{cluster}:{ledger_id}:{era}"


@functools.lru_cache(maxsize=4)
def time_text(at_ns: int) -> str:
    """RFC 3339, UTC, to the nanosecond."""
    seconds, rest = divmod(at_ns, 10**9)
    days, second = divmod(seconds, 86_400)
    year, month, day = _date_of(days)
    return (
        f"{year:04d}-{month:02d}-{day:02d}T{second // 3_600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{rest:09d}Z"
    )


def parse_time(text: str) -> int:
    """The reverse of `time_text`, ns since 1970.

    Raises:
        InvalidInputError: it is none.
    """
    match = _TIME.fullmatch(text)
    if match is not None:
        year, month, day, hour, minute, second, rest = map(int, match.groups())
        at_ns = (_days_to(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second) * 10**9 + rest
        # What is no date, or no time of day, comes out as another one.
        if time_text(at_ns) == text:
            return at_ns
    raise InvalidInputError(f"{text[:80]!r} is not a time of the feed", field="ce-time")


def _days_to(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March."""
    year -= month < 3
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 719_469


def _date_of(days: int) -> tuple[int, int, int]:
    """The reverse of `_days_to`."""
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    month = month + 3 if month < 10 else month - 9
    return year + 400 * era + (month < 3), month, day + 1


def encoded(value: str) -> str:
    """A value as it stands in a header."""
    raw = value.encode()
    if _PLAIN.fullmatch(raw):
        return value
    return "".join(chr(byte) if _PLAIN.fullmatch(bytes((byte,))) else f"%{byte:02X}" for byte in raw)


def decoded(text: str) -> str:
    """The value of a header, written by whoever keeps to the binding.

    Raises:
        InvalidInputError: what was encoded is not UTF-8.
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{text[:80]!r} is not UTF-8", field="header") from None


def header_lines(said: Attributes) -> str:
    """The headers of one message, each line ended, without the first one (`NATS/1.0`) and the last, empty one."""
    position = said.position
    text = (
        f"ce-specversion: {SPEC_VERSION}\r\n"
        f"ce-id: {event_id(position, said.part)}\r\n"
        f"ce-source: {source_of(said.cluster, said.ledger_id, said.era)}\r\n"
        f"ce-type: {TYPE_PREFIX}{said.tag}\r\n"
        f"ce-time: {time_text(said.at_ns)}\r\n"
        f"ce-datacontenttype: {CONTENT_TYPE}\r\n"
        f"ce-dataschema: {SCHEMA_PREFIX}{said.tag}\r\n"
        f"ce-sequence: {position:0{SEQUENCE_DIGITS}d}\r\n"
        f"ce-position: {position}\r\n"
        f"ce-prevposition: {said.previous}\r\n"
        f"ce-part: {said.part}\r\n"
        f"ce-parts: {said.parts}\r\n"
    )
    for name, value in (("subject", said.subject), ("tenant", said.tenant), ("causationid", said.cause)):
        if value:
            text += f"ce-{name}: {encoded(value)}\r\n"
    return text


def raw_headers(headers: bytes | None) -> dict[str, str]:
    """The headers of a message as they came over the wire, names as they were sent, values not decoded yet."""
    lines = (headers or b"").decode(errors="replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def read_attributes(headers: Iterable[tuple[str, str]]) -> Attributes:
    """What the headers of a message of the feed say; names in upper case are taken for the same.

    Raises:
        InvalidInputError: an attribute is missing, or is not what the feed would write; the text names it.
    """
    found = {
        name.lower().removeprefix(HEADER_PREFIX): decoded(value)
        for name, value in headers
        if name.lower().startswith(HEADER_PREFIX)
    }
    for name in _NEEDED:
        if name not in found:
            raise InvalidInputError("missing", field=f"ce-{name}")
    if found["specversion"] != SPEC_VERSION:
        version = found["specversion"][:20]
        raise InvalidInputError(f"{version!r}; this build reads {SPEC_VERSION}", field="ce-specversion")
    source = _SOURCE.fullmatch(found["source"])
    if source is None:
        raise InvalidInputError(f"{found['source'][:120]!r} is not a ledger", field="ce-source")
    if not found["type"].startswith(TYPE_PREFIX):
        raise InvalidInputError(f"{found['type'][:120]!r} is no event of a ledger", field="ce-type")
    return Attributes(
        cluster=source[1],
        ledger_id=source[2],
        era=int(source[3]),
        position=_number(found, "position"),
        part=_number(found, "part"),
        parts=_number(found, "parts"),
        previous=_number(found, "prevposition"),
        tag=found["type"].removeprefix(TYPE_PREFIX),
        at_ns=parse_time(found["time"]),
        subject=found.get("subject", ""),
        tenant=found.get("tenant", ""),
        cause=found.get("causationid", ""),
    )


def _number(found: dict[str, str], name: str) -> int:
    text = found[name]
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", text):
        raise InvalidInputError(f"{text[:40]!r} is not a number", field=f"ce-{name}")
    return int(text)
