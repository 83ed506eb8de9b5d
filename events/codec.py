"""How things are written: JSON, keys sorted, integers only. Strict for requests, tolerant for the log.

Sorted keys make equal values equal bytes, so a record that is decided again can be compared to the byte.
"""

import hashlib
import re
from typing import Any, Final

import msgspec

from leasehold.events import capabilities, event_types, identities, inputs, limits
from leasehold.events.devices import SOURCES, WHYS, Sighting
from leasehold.events.domains import STATES, USES, DomainDescription, parse_device_word
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnknownFormatError
from leasehold.events.event_types import Event, OldEvent
from leasehold.events.inputs import Input, Observed, Request
from leasehold.events.record import FORMAT, Record, Step

_encoder: Final = msgspec.json.Encoder(order="sorted")
_record_decoder: Final = msgspec.json.Decoder(Record)
_observed_decoder: Final = msgspec.json.Decoder(Observed)


class _StrictLease(inputs.LeaseRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease.v1"):
    pass


class _StrictRenew(inputs.RenewRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="renew.v1"):
    pass


class _StrictRelease(inputs.ReleaseRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="release.v1"):
    pass


class _StrictConfirmFree(
    inputs.ConfirmFreeRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="confirm_free.v1"
):
    pass


class _StrictVport(capabilities.NewVport, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vport"):
    pass


class _StrictMdev(capabilities.NewMdev, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mdev"):
    pass


class _StrictCreateDevice(
    inputs.CreateDeviceRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="create_device.v1"
):
    device: _StrictVport | _StrictMdev


class _StrictDestroyDevice(
    inputs.DestroyDeviceRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="destroy_device.v1"
):
    pass


class _StrictRetireAgent(
    inputs.RetireAgentRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="retire_agent.v1"
):
    pass


_STRICT: Final[dict[str, type[Any]]] = {
    "lease": _StrictLease,
    "renew": _StrictRenew,
    "release": _StrictRelease,
    "confirm_free": _StrictConfirmFree,
    "create_device": _StrictCreateDevice,
    "destroy_device": _StrictDestroyDevice,
    "retire_agent": _StrictRetireAgent,
}
_TOLERANT: Final[dict[type[Any], type[Any]]] = {
    _StrictLease: inputs.LeaseRequest,
    _StrictRenew: inputs.RenewRequest,
    _StrictRelease: inputs.ReleaseRequest,
    _StrictConfirmFree: inputs.ConfirmFreeRequest,
    _StrictCreateDevice: inputs.CreateDeviceRequest,
    _StrictDestroyDevice: inputs.DestroyDeviceRequest,
    _StrictRetireAgent: inputs.RetireAgentRequest,
    _StrictVport: capabilities.NewVport,
    _StrictMdev: capabilities.NewMdev,
}
_VERB: Final[dict[type[Any], str]] = {_TOLERANT[strict]: verb for verb, strict in _STRICT.items()}
_request_decoders: Final = {verb: msgspec.json.Decoder(kind) for verb, kind in _STRICT.items()}
VERBS: Final = tuple(_STRICT)
"""The requests that change something, by the verb in their subject."""

_RULES_OF_OLD_EVENTS: Final = 2
"""Newer records hold none of the old events."""
_MSGSPEC_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_MSGSPEC_FIELD: Final = re.compile(r"(?:required|unknown) field `([^`]+)`")


def encode(value: object) -> bytes:
    """The one encoding of a value of ours."""
    return _encoder.encode(value)


class _RecordOfEncoded(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    ledger_id: str
    era: int
    prev: str
    writer: str
    decided_at_ns: int
    rules_version: int
    observed_through: int
    steps: list[msgspec.Raw]


def encode_record(record: Record, steps: list[bytes]) -> bytes:
    """`encode(record)`, where its steps have been encoded already."""
    return _encoder.encode(
        _RecordOfEncoded(
            format=record.format,
            ledger_id=record.ledger_id,
            era=record.era,
            prev=record.prev,
            writer=record.writer,
            decided_at_ns=record.decided_at_ns,
            rules_version=record.rules_version,
            observed_through=record.observed_through,
            steps=[msgspec.Raw(step) for step in steps],
        )
    )


def verb_of(request: Request) -> str:
    """What stands in its subject: one of `VERBS`."""
    return _VERB[type(request)]


def decode_record(body: bytes, sequence: int) -> Record:
    """Read the record that stands at `sequence`.

    Raises:
        UnknownFormatError: written in a form, or with an event type, that this build does not know.
        CorruptLedgerError: no record.
    """
    try:
        record = _record_decoder.decode(body)
    except msgspec.ValidationError as error:
        old = _decode_old(body)
        if old is None:
            raise UnknownFormatError(f"this build cannot read it ({error})", sequence=sequence) from error
        record = old
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptLedgerError(f"not a record ({error})", sequence=sequence) from error
    if record.format != FORMAT:
        raise UnknownFormatError(f"format {record.format}; this build reads {FORMAT}", sequence=sequence)
    return record


class _OldStep(msgspec.Struct, frozen=True, gc=False):
    input: Input
    events: tuple[Event | OldEvent, ...]


class _OldRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    format: int
    ledger_id: str
    era: int
    prev: str
    writer: str
    decided_at_ns: int
    rules_version: int
    observed_through: int
    steps: tuple[_OldStep, ...]


_old_record_decoder: Final = msgspec.json.Decoder(_OldRecord)
_event_decoder: Final = msgspec.json.Decoder(Event | OldEvent)


def decode_event(body: bytes) -> Event | None:
    """One event as it stands in a record, in today's version; `None` if it is of a type that this build does not know.

    Raises:
        InvalidInputError: it is not JSON.
    """
    try:
        return _upcast(_event_decoder.decode(body))
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"not JSON ({error})", field="event") from error


def _decode_old(body: bytes) -> Record | None:
    """A record with events of older versions, which are replaced by today's; `None` if it is not that either.

    Only records that are no other pay for this.
    """
    try:
        old = _old_record_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if old.rules_version > _RULES_OF_OLD_EVENTS:
        return None
    steps = tuple(Step(step.input, tuple(_upcast(event) for event in step.events)) for step in old.steps)
    fields = {name: getattr(old, name) for name in old.__struct_fields__ if name != "steps"}
    return Record(steps=steps, **fields)


def _upcast(event: Event | OldEvent) -> Event:
    if not isinstance(event, event_types.LeaseGrantedV1):
        return event
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return event_types.LeaseGranted(tenant=identities.tenant_of(event.request.principal), **fields)


def decode_observed(body: bytes) -> Observed:
    """Read a message of OBSERVED.

    Raises:
        InvalidInputError: it is none, or over a bound; the text names the field.
    """
    if len(body) > limits.OBSERVED_BYTES_MAX:
        raise InvalidInputError(f"{len(body)} bytes; at most {limits.OBSERVED_BYTES_MAX}", field="message")
    observed: Observed = decode_checked(_observed_decoder, body, what="message")
    _check_observed(observed)
    return observed


def _check_observed(observed: Observed) -> None:
    identities.parse_host(observed.host)
    _check_agent(observed.agent)
    _check_range(observed.run, 1, 2**63 - 1, "run")
    _check_range(observed.counter, 0, 2**53 - 1, "counter")
    _check_range(len(observed.observations), 1, limits.OBSERVATIONS_PER_MESSAGE_MAX, "observations")
    starts = any(isinstance(each, inputs.SourceStarts) for each in observed.observations)
    if starts != (observed.counter == 0) or (starts and len(observed.observations) != 1):
        raise InvalidInputError("a run's first message (counter 0) is source_starts, alone", field="observations")
    for each in observed.observations:
        _check_observation(each)
        if isinstance(each, inputs.WORDS_OF_DOMAINS) and observed.agent != inputs.POLLER:
            raise InvalidInputError(f"only the agent {inputs.POLLER} tells of domains", field="agent")


def _check_agent(agent: str) -> None:
    if not re.fullmatch(identities.AGENT_PATTERN, agent):
        raise InvalidInputError(f"{agent[:80]!r} is not an agent's name, like watcher", field="agent")


def _check_observation(given: inputs.Observation) -> None:
    match given:
        case inputs.DeviceSeen():
            _check_description(given)
        case inputs.DeviceGone() | inputs.DeviceFlaps():
            _check_key(given.key, "key")
        case inputs.MissedEvents():
            _check_range(given.times, 1, 2**31 - 1, "times")
        case inputs.OrderDone() | inputs.OrderNotDone():
            _check_range(given.order, 1, 2**53 - 1, "order")
        case inputs.DomainSeen():
            _check_domain(given.domain)
        case inputs.DomainGone():
            _check_domain_key(given.key, "key")
        case inputs.DeviceUsed() | inputs.DeviceUnused():
            _check_domain_key(given.domain, "domain")
            if parse_device_word(given.device) != given.device:
                raise InvalidInputError(f"{given.device!r} is not in its one spelling (lower case)", field="device")
            if given.use not in USES:
                raise InvalidInputError(f"{given.use[:80]!r} is none of {', '.join(USES)}", field="use")
        case inputs.SourceBlind():
            _check_text(given.reason, "reason", limits.REASON_CHARS_MAX)
    match given:
        case inputs.DeviceSeen(how=Sighting()) | inputs.DeviceGone(how=Sighting()) | inputs.DeviceFlaps():
            _check_sighting(given.how)
        case inputs.OrderDone() if given.device:
            _check_key(given.device, "device")
        case inputs.OrderNotDone():
            _check_text(given.reason, "reason", limits.REASON_CHARS_MAX)


def _check_domain(domain: DomainDescription) -> None:
    _check_domain_key(domain.key, "domain.key")
    if domain.state not in STATES:
        raise InvalidInputError(f"{domain.state[:80]!r} is none of {', '.join(STATES)}", field="domain.state")
    _check_range(len(domain.name), 0, limits.DOMAIN_NAME_CHARS_MAX, "domain.name")
    _check_range(len(domain.kind), 0, limits.DOMAIN_KIND_CHARS_MAX, "domain.kind")
    _check_range(domain.domid, -1, 2**32 - 1, "domain.domid")
    _check_range(domain.vcpus, 0, 2**31 - 1, "domain.vcpus")
    for field in ("memory_bytes", "max_memory_bytes"):
        _check_range(getattr(domain, field), 0, 2**63 - 1, f"domain.{field}")


def _check_domain_key(key: str, field: str) -> None:
    try:
        spelled = identities.parse_domain_key(key)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field) from None
    if spelled != key:
        raise InvalidInputError(f"{key!r} is not in its one spelling (lower case, dashes)", field=field)


def _check_sighting(how: Sighting | None) -> None:
    assert how is not None
    for field, known in (("why", WHYS), ("source", ("", *SOURCES))):
        if getattr(how, field) not in known:
            said = repr(getattr(how, field))[:80]
            raise InvalidInputError(f"{said} is none of {', '.join(known)}", field=f"how.{field}")
    _check_range(len(how.actions), 0, limits.ACTIONS_TOLD_MAX, "how.actions")
    for action in how.actions:
        _check_text(action, "how.actions", limits.NAME_CHARS_MAX)
    _check_range(how.flaps, 0, 2**31 - 1, "how.flaps")
    _check_range(how.heard_at_ns, 0, 2**63 - 1, "how.heard_at_ns")


def _check_key(key: str, field: str) -> None:
    if identities.parse_device_key(key) != key:
        raise InvalidInputError(f"{key!r} is not in its one spelling (lower case)", field=field)


def _check_description(seen: inputs.DeviceSeen) -> None:
    device = seen.device
    _check_key(device.key, "device.key")
    for field in ("parent", "physical_function"):
        if getattr(device, field):
            _check_key(getattr(device, field), f"device.{field}")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", device.name):
        raise InvalidInputError(f"{device.name[:80]!r} is not a node-device name", field="device.name")
    for field in ("pci_class", "iommu_group", "numa_node"):
        _check_range(getattr(device, field), -1, 2**32 - 1, f"device.{field}")
    _check_range(len(device.attributes), 0, limits.ATTRIBUTES_PER_DEVICE_MAX, "device.attributes")
    _check_range(len(device.devnodes), 0, limits.DEVNODES_PER_DEVICE_MAX, "device.devnodes")
    _check_range(len(device.protections), 0, limits.REASONS_PER_DEVICE_MAX, "device.protections")
    _check_range(len(device.in_use_by), 0, limits.REASONS_PER_DEVICE_MAX, "device.in_use_by")
    _check_range(len(encode(device)), 0, limits.DESCRIPTION_BYTES_MAX, "device")


def decode_request(verb: str, body: bytes) -> Request:
    """Read a request at the door: every field checked, unknown ones refused.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if verb not in _request_decoders:
        raise InvalidInputError(f"{verb[:40]!r} is none of {', '.join(VERBS)}", field="verb")
    if len(body) > limits.REQUEST_BYTES_MAX:
        raise InvalidInputError(f"{len(body)} bytes; at most {limits.REQUEST_BYTES_MAX}", field="request")
    strict = decode_checked(_request_decoders[verb], body, what="request")
    request: Request = _as_tolerant(strict)
    check_request(request)
    return request


def _as_tolerant(value: Any) -> Any:
    """The same in the type that stands in the log; of what has no strict one, itself."""
    kind = _TOLERANT.get(type(value))
    if kind is None:
        return value
    return kind(**{name: _as_tolerant(field) for name, field in msgspec.structs.asdict(value).items()})


def decode_checked(decoder: msgspec.json.Decoder[Any], body: bytes, *, what: str) -> Any:
    """Decode JSON from outside.

    Raises:
        InvalidInputError: with the field (or `what`, for the whole) and what would be right.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        path = _MSGSPEC_PATH.search(text)
        named = _MSGSPEC_FIELD.search(text)
        field = ".".join(part for part in ((path[1] if path else ""), (named[1] if named else "")) if part)
        raise InvalidInputError(_MSGSPEC_PATH.sub("", text), field=field or what) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"not JSON ({error})", field=what) from error


def check_request(request: Request) -> None:
    """The bounds of a request's fields.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    identities.parse_request_id(request.request_id)
    _check_range(request.issued_at_ns, 0, 2**63 - 1, "issued_at_ns")
    if isinstance(request, inputs.LeaseRequest):
        _check_lease(request)
    elif isinstance(request, inputs.ConfirmFreeRequest):
        _check_text(request.device, "device", limits.DEVICE_TEXT_CHARS_MAX)
        _check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
        if request.host:
            identities.parse_host(request.host)
    elif isinstance(request, inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest):
        _check_order(request)
    elif isinstance(request, inputs.RetireAgentRequest):
        identities.parse_host(request.host)
        _check_agent(request.agent)
        _check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
    else:
        _check_range(request.lease, 1, 2**53 - 1, "lease")
        _check_range(request.token, 1, 2**53 - 1, "token")
        if isinstance(request, inputs.RenewRequest) and request.ttl_ms:
            _check_range(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")


def _check_lease(request: inputs.LeaseRequest) -> None:
    identities.parse_holder(request.holder)
    _check_range(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")
    _check_range(len(request.devices), 1, limits.DEVICES_PER_LEASE_MAX, "devices")
    for device in request.devices:
        _check_text(device, "devices", limits.DEVICE_TEXT_CHARS_MAX)
    if request.host:
        identities.parse_host(request.host)
    if request.domain:
        if identities.parse_uuid(request.domain, "domain") != request.domain:
            raise InvalidInputError(
                f"{request.domain!r} is not in its one spelling (lower case, dashes)", field="domain"
            )
        _check_range(request.gone_ms, 0, limits.GONE_MS_MAX, "gone_ms")
    elif request.gone_ms != inputs.GONE_MS or request.keep:
        field = "keep" if request.keep else "gone_ms"
        raise InvalidInputError("it is about the domain that a lease is for, and none is named", field=field)


def _check_order(request: inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest) -> None:
    if request.host:
        identities.parse_host(request.host)
    _check_range(request.timeout_ms, limits.ORDER_TIMEOUT_MS_MIN, limits.ORDER_TIMEOUT_MS_MAX, "timeout_ms")
    if isinstance(request, inputs.DestroyDeviceRequest):
        _check_text(request.device, "device", limits.DEVICE_TEXT_CHARS_MAX)
    elif isinstance(request.device, capabilities.NewMdev):
        _check_new_mdev(request.device)
    else:
        _check_new_vport(request.device, request.host)


def _check_new_mdev(device: capabilities.NewMdev) -> None:
    _check_text(device.parent, "device.parent", limits.DEVICE_TEXT_CHARS_MAX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", device.mdev_type):
        raise InvalidInputError(
            f"{device.mdev_type[:80]!r} is not a type of mediated device; one looks like i915-GVTg_V5_4",
            field="device.mdev_type",
        )
    if device.uuid and not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", device.uuid):
        raise InvalidInputError(
            f"{device.uuid[:80]!r} is not a UUID in lower case, like c2177883-f1bb-47f0-914d-32a22e3a8804",
            field="device.uuid",
        )


def _check_new_vport(device: capabilities.NewVport, host: str) -> None:
    if device.parent:
        _check_text(device.parent, "device.parent", limits.DEVICE_TEXT_CHARS_MAX)
    elif not (host or device.parent_wwnn or device.parent_wwpn):
        raise InvalidInputError("say on which host, or on which parent", field="host")
    for field in ("parent_wwnn", "parent_wwpn", "parent_fabric_wwn", "wwnn", "wwpn"):
        if getattr(device, field):
            identities.parse_wwn(getattr(device, field), f"device.{field}")


def _check_text(text: str, field: str, chars_max: int) -> None:
    if not 1 <= len(text) <= chars_max or not text.isprintable():
        raise InvalidInputError(f"{text[:40]!r} is not a printable text of 1 to {chars_max} characters", field=field)


def _check_range(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{value} is not between {low} and {high}", field=field)


def body_hash(request: Request) -> str:
    """32 hex digits over what is asked for, without when: the same words said again are the same request."""
    fields = msgspec.structs.asdict(request)
    del fields["issued_at_ns"]
    if isinstance(request, inputs.LeaseRequest) and not request.domain:
        # As it was hashed before leases could be for a domain.
        del fields["domain"], fields["gone_ms"], fields["keep"]
    return hashlib.sha256(_encoder.encode((verb_of(request), fields))).hexdigest()[:32]
