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
from leasehold.events.subjects import Subjects
from leasehold.events.views import DeviceView, OwnerView
from leasehold.projections.hearing import Chain, Told
from leasehold.services.ledger.tail import header

KINDS: Final = frozenset(each.__struct_config__.tag.rpartition(".")[0] for each in get_args(Event))
"""All kinds of events: their types without the version."""
_FIRST_WORD: Final = 3
"""Of a subject, behind `leasehold.<cluster>.evt`."""
_SOURCE: Final = b"ce-source:"
_TIME: Final = b"ce-time:"
_TYPE: Final = b"ce-type:"
_CAUSE: Final = b"ce-causationid:"
_PLACE: Final = re.compile(
    rb"\r\nce-position: (\d{1,16})\r\nce-prevposition: (\d{1,16})\r\nce-part: (\d{1,4})\r\nce-parts: (\d{1,4})\r\n"
)
"""As `cloudevents.header_lines` writes them, behind each other."""
_KEPT: Final = re.compile(rb"\r\nNats-Subject: (\S+)\r\nNats-Sequence: (\d{1,18})\r\n")
"""As the server writes them, behind each other."""

class Log(msgspec.Struct, frozen=True):
    """Which ledger a position is of: an id, and an era that is raised when it is restored from an archive."""

    ledger_id: str
    era: int


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as the feed told it.

    `position` is its id, and where to go on (`client.events(since=event)`); `at_ns`: when it was decided, ns since
    1970, UTC; `type` like `lease_granted.v2`; `device` an id (`host/key`), `lease` like `L4352`; empty where it has
    none. An event of several devices is given once, with the first of them that was asked for. `cause`:
    `principal/request id` of the request that it answers.
    """

    position: int
    at_ns: int
    type: str
    host: str
    device: str
    lease: str
    tenant: str
    cause: str
    log: Log
    event: Event | None
    """`None` for a type that this build does not know: see `data`."""
    data: msgspec.Raw
    """The event's JSON, as it stands in the ledger."""


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
        identities.parse_principal(tenant)
    text = lease_id_text(parse_lease_id(str(lease))) if lease else ""
    return Wanted(host=host, kind=kind, device=device, lease=text, tenant=tenant)


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
        stored = _KEPT.search(headers)
        return self._told(stored, body, headers) if stored is not None and stored[1] == subject else None

    def kept(self, body: bytes, headers: bytes) -> Told | None:
        """A message as the stream has it; `None` if it is not a feed's."""
        stored = _KEPT.search(headers)
        return self._told(stored, body, headers) if stored is not None else None

    def made(self, subject: str, headers: str, body: bytes) -> Told:
        """A message that the feed would send, and that was made from the ledger. `subject`: below `evt`."""
        full = self._subjects.events_all.removesuffix(">") + subject
        lines = f"NATS/1.0\r\n{headers}Nats-Subject: {full}\r\nNats-Sequence: 0\r\n\r\n".encode()
        told = self.kept(body, lines)
        assert told is not None, lines
        return told

    def _told(self, stored: re.Match[bytes], body: bytes, headers: bytes) -> Told | None:
        place = _PLACE.search(headers)
        if place is None:
            return None
        subject = stored[1]
        words = subject.split(b".") if self._needed else ()
        return Told(
            int(stored[2]),
            int(place[1]),
            int(place[2]),
            int(place[3]),
            int(place[4]),
            all(words[at] == word for at, word in self._needed) if self._needed else True,
            (subject, body, headers),
        )

    def kind(self, told: Told) -> str:
        """Of what kind the event is: its type without the version."""
        subject: bytes = told.message[0]
        return subject.split(b".")[_FIRST_WORD + 1].decode()

    def event(self, told: Told) -> FeedEvent:
        """What is given to the reader.

        Raises:
            InvalidInputError: it is no event of a feed.
        """
        subject, body, headers = told.message
        parts = self._subjects.parse_event(subject.decode())
        return FeedEvent(
            position=told.position,
            at_ns=_time(header(headers, _TIME).decode()),
            type=header(headers, _TYPE).decode().removeprefix(cloudevents.TYPE_PREFIX),
            host=parts.host,
            device=f"{parts.host}/{parts.device}" if parts.device else "",
            lease=parts.lease,
            tenant=parts.tenant,
            cause=cloudevents.decoded(header(headers, _CAUSE).decode()),
            log=log_of(told),
            event=codec.decode_event(body),
            data=msgspec.Raw(body),
        )


@functools.lru_cache(maxsize=64)
def _time(text: str) -> int:
    return cloudevents.parse_time(text)


def log_of(told: Told) -> Log:
    """Which ledger and era a message is of."""
    return _log_of(header(told.message[2], _SOURCE))


@functools.lru_cache(maxsize=16)
def _log_of(source: bytes) -> Log:
    _, _, _, ledger_id, era = source.decode().split(":")
    return Log(ledger_id, int(era))
