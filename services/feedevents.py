"""Events of the feed as a program meets them, and which of them it wants."""

import functools
import re
from typing import Final, get_args

import msgspec

from leasehold.events import cloudevents, codec, identities
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId
from leasehold.events.position import lease_id_text, parse_lease_id
from leasehold.events.subjects import EventSubject, Subjects
from leasehold.events.views import DeviceView, OwnerView
from leasehold.projections.hearing import Chain, Told

KINDS: Final = frozenset(each.__struct_config__.tag.rpartition(".")[0] for each in get_args(Event))
"""All kinds of events: their types without the version."""
_FIRST_WORD: Final = 3
"""Of a subject, behind `leasehold.<cluster>.evt`."""
_SOURCE: Final = b"\r\nce-source: "
_TIME: Final = b"\r\nce-time: "
_TYPE: Final = b"\r\nce-type: "
_CAUSE: Final = b"\r\nce-causationid: "
_FRACTION_AT: Final = len("2026-01-01T00:00:00.")
_FRACTION_DIGITS: Final = 9
_PLACE_BEGINS: Final = b"\r\nce-position: "
_PLACE: Final = re.compile(
    rb"\r\nce-position: (\d{1,16})\r\nce-prevposition: (\d{1,16})\r\nce-part: (\d{1,4})\r\nce-parts: (\d{1,4})\r\n"
)
"""As `cloudevents.header_lines` writes them, behind each other."""
_KEPT_BEGINS: Final = b"\r\nNats-Subject: "
_KEPT: Final = re.compile(rb"\r\nNats-Subject: (\S+)\r\nNats-Sequence: (\d{1,18})\r\n")
"""As the server writes them, behind each other."""


class Log(msgspec.Struct, frozen=True):
    """Which ledger a position is of: an id, and an era that is raised when it is restored from an archive."""

    ledger_id: str
    era: int


class FeedEvent(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One event, as the feed told it.

    All but the position is read only when it is asked for, since most of what is followed is passed over: who hears
    a thousand events a second pays for those that it looks into. An event of several devices is given once, with the
    first of them that was asked for.
    """

    position: int
    """Its id, and where to go on (`client.events(since=event)`)."""
    subject: bytes
    """Under which EVENTS keeps it."""
    body: bytes
    """The event's JSON, as it stands in the ledger."""
    headers: bytes
    """As they came over the wire."""

    @property
    def at_ns(self) -> int:
        """When it was decided, ns since 1970, UTC."""
        return _time(_value(self.headers, _TIME).decode())

    @property
    def type(self) -> str:
        """Like `lease_granted.v2`."""
        return _value(self.headers, _TYPE).decode().removeprefix(cloudevents.TYPE_PREFIX)

    @property
    def host(self) -> str:
        """Empty where it has none."""
        return _named(self.subject).host

    @property
    def device(self) -> str:
        """An id (`host/key`); empty where it has none."""
        named = _named(self.subject)
        return f"{named.host}/{named.device}" if named.device else ""

    @property
    def lease(self) -> str:
        """Like `L4352`; empty where it has none."""
        return _named(self.subject).lease

    @property
    def tenant(self) -> str:
        """Empty where it has none."""
        return _named(self.subject).tenant

    @property
    def cause(self) -> str:
        """`principal/request id` of the request that it answers; empty where none did."""
        return cloudevents.decoded(_value(self.headers, _CAUSE).decode())

    @property
    def log(self) -> Log:
        """The ledger that its position is of."""
        return _log_of(_value(self.headers, _SOURCE))

    @property
    def event(self) -> Event | None:
        """With its types; `None` for a type that this build does not know: see `data`.

        Raises:
            InvalidInputError: the body is not JSON.
        """
        return _typed(self.body)

    @property
    def data(self) -> msgspec.Raw:
        """The event's JSON, to be put into other JSON."""
        return msgspec.Raw(self.body)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeedEvent):
            return NotImplemented
        # What the server adds to the headers is different live and out of the stream.
        mine, others = (self.position, self.subject, self.body), (other.position, other.subject, other.body)
        return mine == others and self.log == other.log

    def __hash__(self) -> int:
        return hash((self.position, self.subject))

    def __repr__(self) -> str:
        return f"FeedEvent({self.position}, {self.subject!r}, {self.body!r})"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How it was behind `position`: to be gone on from with `client.events(since=snapshot)`."""

    position: int
    log: Log
    devices: tuple[DeviceView, ...]
    owners: tuple[OwnerView, ...]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; empty for whatever. `device` is an id (`host/key`), `lease` like `L4352`."""

    host: str = ""
    kind: str = ""
    device: str = ""
    lease: str = ""
    tenant: str = ""

    @property
    def chain(self) -> Chain:
        """How it shows whether one is missing: where one host's are wanted, all of that host is listened to."""
        if self.host:
            return Chain.HOST
        return Chain.NONE if self.kind or self.lease or self.tenant else Chain.STREAM

    def listened(self, subjects: Subjects) -> str:
        """The subject to listen to."""
        match self.chain:
            case Chain.HOST:
                return subjects.events_of(self.host)
            case Chain.STREAM:
                return subjects.events_all
        return subjects.event(
            host="*", kind=self.kind or "*", device="*", lease=self.lease or "*", tenant=self.tenant or "*"
        )


def wanted(*, host: str = "", kind: str = "", device: str = "", lease: int | str = "", tenant: str = "") -> Wanted:
    """What somebody asks for, checked.

    Args:
        device: Its id (`host/key`), or with `host` its key.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if host:
        identities.parse_host(host)
    if kind and kind not in KINDS:
        raise InvalidInputError(f"{kind[:80]!r} is none of {', '.join(sorted(KINDS))}", field="kind")
    if device:
        device, host = _device_of(device, host)
    if tenant:
        _check_tenant(tenant)
    text = lease_id_text(parse_lease_id(str(lease))) if lease else ""
    return Wanted(host=host, kind=kind, device=device, lease=text, tenant=tenant)


def _check_tenant(tenant: str) -> None:
    try:
        identities.parse_principal(tenant)
    except InvalidInputError as error:
        raise InvalidInputError(f"{tenant[:80]!r} is no tenant; one is letters, digits, _@-", field="tenant") from error


def _device_of(device: str, host: str) -> tuple[DeviceId, str]:
    named, _, key = device.partition("/")
    try:
        if host and named != host:
            named, key = host, device
        return identities.device_id(identities.parse_host(named), identities.parse_device_key(key)), named
    except InvalidInputError as error:
        said = f"{device[:80]!r} is not a device's id, like h1/pci/0000:03:00.0, nor with a host its key"
        raise InvalidInputError(said, field="device") from error


class MessageReader:
    """Messages of the feed, read only as far as one reader's place in it needs."""

    def __init__(self, subjects: Subjects, wanted: Wanted) -> None:
        key = wanted.device.partition("/")[2]
        words = subjects.event(
            host=wanted.host or "*", kind=wanted.kind or "*", device=key or "*", lease=wanted.lease or "*",
            tenant=wanted.tenant or "*",
        ).encode().split(b".")  # fmt: skip
        self._needed = [(at, word) for at, word in enumerate(words) if at >= _FIRST_WORD and word != b"*"]
        self._subjects = subjects

    def told(self, subject: bytes, body: bytes, headers: bytes) -> Told | None:
        """A message that came live; `None` if it is not the feed that has sent it.

        A server's answer to somebody who has named a subject of the feed for it says another subject, or none.
        """
        told = self.kept(body, headers)
        return told if told is not None and told.message[0] == subject else None

    def kept(self, body: bytes, headers: bytes) -> Told | None:
        """A message as the stream has it; `None` if it is not a feed's."""
        # Where they begin is found many times as fast by the bytes as by the expressions.
        place_at, kept_at = headers.find(_PLACE_BEGINS), headers.find(_KEPT_BEGINS)
        if place_at < 0 or kept_at < 0:
            return None
        place, kept = _PLACE.match(headers, place_at), _KEPT.match(headers, kept_at)
        if place is None or kept is None:
            return None
        position, previous, part, parts = place.groups()
        subject, sequence = kept.groups()
        is_wanted = self._is_wanted(subject) if self._needed else True
        return Told(
            int(sequence), int(position), int(previous), int(part), int(parts), is_wanted, (subject, body, headers)
        )

    def _is_wanted(self, subject: bytes) -> bool:
        words = subject.split(b".")
        return all(words[at] == word for at, word in self._needed)

    def made(self, subject: str, headers: str, body: bytes) -> Told:
        """A message that the feed would send, and that was made from the ledger. `subject`: below `evt`."""
        full = self._subjects.events_all.removesuffix(">") + subject
        lines = f"NATS/1.0\r\n{headers}Nats-Subject: {full}\r\nNats-Sequence: 0\r\n\r\n".encode()
        told = self.kept(body, lines)
        assert told is not None, lines
        return told

    def kind(self, told: Told) -> str:
        """Of what kind the event is: its type without the version."""
        subject: bytes = told.message[0]
        return subject.split(b".")[_FIRST_WORD + 1].decode()

    def event(self, told: Told) -> FeedEvent:
        """What is given to the reader."""
        subject, body, headers = told.message
        return FeedEvent(told.position, subject, body, headers)


def _time(text: str) -> int:
    fraction = text[_FRACTION_AT:-1]
    if len(fraction) == _FRACTION_DIGITS and fraction.isdecimal():
        return _whole_second(f"{text[:_FRACTION_AT]}{'0' * _FRACTION_DIGITS}{text[-1]}") + int(fraction)
    return cloudevents.parse_time(text)


@functools.lru_cache(maxsize=16)
def _whole_second(text: str) -> int:
    return cloudevents.parse_time(text)


@functools.lru_cache(maxsize=64)
def _named(subject: bytes) -> EventSubject:
    text = subject.decode()
    return Subjects(text.split(".", 2)[1]).parse_event(text)


@functools.lru_cache(maxsize=64)
def _typed(body: bytes) -> Event | None:
    return codec.decode_event(body)


def _value(headers: bytes, begins: bytes) -> bytes:
    """Of a header that a feed has written, found by how its line begins; b"" if it is not there."""
    at = headers.find(begins)
    return headers[at + len(begins) : headers.find(b"\r\n", at + 2)] if at >= 0 else b""


def source_line(headers: bytes) -> bytes:
    """The header that says which ledger and era a message is of, with the ends of line around it."""
    return b"%b%b\r\n" % (_SOURCE, _value(headers, _SOURCE))


def log_of(told: Told) -> Log:
    """Which ledger and era a message is of."""
    return _log_of(_value(told.message[2], _SOURCE))


@functools.lru_cache(maxsize=16)
def _log_of(source: bytes) -> Log:
    _, _, _, ledger_id, era = source.decode().split(":")
    return Log(ledger_id, int(era))
