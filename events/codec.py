"""How things are written: JSON, keys sorted, integers only. Strict for requests, tolerant for the log.

Sorted keys make equal values equal bytes, so a record that is decided again can be compared to the byte.
"""

import hashlib
import re
from types import GenericAlias
from typing import Any, Final, Union, get_args

import msgspec

from leasehold.events import capabilities, checks, event_types, identities, inputs, limits, schedule_inputs, scheduling
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnknownFormatError
from leasehold.events.event_types import Event
from leasehold.events.inputs import Input, Observed, Request
from leasehold.events.old_events import LeaseGrantedV1, OldEvent
from leasehold.events.record import FORMAT, Record, Step

_encoder: Final = msgspec.json.Encoder(order="sorted")
_record_decoder: Final = msgspec.json.Decoder(Record)
_observed_decoder: Final = msgspec.json.Decoder(Observed)
_HOLDS_STRICT: Final[dict[type[Any], tuple[str, ...]]] = {}
"""Of a strict type, the fields that have strict values themselves."""


def _strict(kind: type[Any], *fields: tuple[str, Any] | tuple[str, Any, Any]) -> type[Any]:
    """The same, but for fields that it does not know, which it refuses."""
    tag = kind.__struct_config__.tag
    strict = msgspec.defstruct(
        f"_Strict{kind.__name__}",
        fields,
        bases=(kind,),
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        forbid_unknown_fields=True,
        tag=tag,
    )
    _HOLDS_STRICT[strict] = tuple(name for name, *_ in fields)
    return strict


_STRICT_OPTION: Final = _strict(scheduling.Option)
_STRICT_NEED: Final = _strict(scheduling.Need, ("first_of", GenericAlias(tuple, (_STRICT_OPTION, ...)), ()))
_STRICT_CONSTRAINT: Final = _strict(scheduling.Constraint)
_NEEDS: Final = (
    ("needs", GenericAlias(tuple, (_STRICT_NEED, ...)), ()),
    ("constraints", GenericAlias(tuple, (_STRICT_CONSTRAINT, ...)), ()),
)
_STRICT_NEW: Final = {kind: _strict(kind) for kind in get_args(capabilities.NewDevice)}
_STRICT_NEWS: Final[Any] = Union[tuple(_STRICT_NEW.values())]  # noqa: UP007 (it is made, not written)
_STRICT: Final[dict[str, type[Any]]] = {
    "lease": _strict(inputs.LeaseRequest, *_NEEDS),
    "renew": _strict(inputs.RenewRequest),
    "release": _strict(inputs.ReleaseRequest),
    "confirm_free": _strict(inputs.ConfirmFreeRequest),
    "create_device": _strict(inputs.CreateDeviceRequest, ("device", _STRICT_NEWS)),
    "destroy_device": _strict(inputs.DestroyDeviceRequest),
    "retire_agent": _strict(inputs.RetireAgentRequest),
    "prepare": _strict(inputs.PrepareRequest),
    "reattach": _strict(inputs.ReattachRequest),
    "operate_device": _strict(inputs.OperateDeviceRequest),
    "revoke": _strict(inputs.RevokeRequest),
    "declare_dead": _strict(inputs.DeclareDeadRequest),
    "withdraw": _strict(schedule_inputs.WithdrawRequest),
    "renew_many": _strict(schedule_inputs.RenewManyRequest),
    "transfer": _strict(schedule_inputs.TransferRequest),
    "reserve": _strict(schedule_inputs.ReserveRequest, *_NEEDS),
    "switch": _strict(schedule_inputs.SwitchRequest),
    "set_class": _strict(schedule_inputs.SetClassRequest),
    "remove_class": _strict(schedule_inputs.RemoveClassRequest),
    "set_quota": _strict(schedule_inputs.SetQuotaRequest),
    "cordon": _strict(schedule_inputs.CordonRequest),
    "uncordon": _strict(schedule_inputs.UncordonRequest),
    "taint": _strict(schedule_inputs.TaintRequest),
    "untaint": _strict(schedule_inputs.UntaintRequest),
    "set_policy": _strict(schedule_inputs.SetPolicyRequest),
    "confirm_clean": _strict(schedule_inputs.ConfirmCleanRequest),
    "heal": _strict(schedule_inputs.HealRequest),
}
_TOLERANT: Final[dict[type[Any], type[Any]]] = {
    strict: strict.__bases__[0]
    for strict in (*_STRICT.values(), *_STRICT_NEW.values(), _STRICT_OPTION, _STRICT_NEED, _STRICT_CONSTRAINT)
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
    if not isinstance(event, LeaseGrantedV1):
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
    checks.check_observed(observed)
    return observed


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
    checks.check_request(request)
    return request


def _as_tolerant(value: Any) -> Any:
    """The same in the type that stands in the log."""
    if isinstance(value, tuple):
        return tuple(map(_as_tolerant, value))
    kind = _TOLERANT.get(type(value))
    if kind is None:
        return value
    fields = msgspec.structs.asdict(value)
    for name in _HOLDS_STRICT[type(value)]:
        fields[name] = _as_tolerant(fields[name])
    return kind(**fields)


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


_SAID_SINCE_SCHEDULING: Final = ("needs", "constraints", "mode", "tolerates", "wait_ms", "priority")
"""Of a request for a lease: hashed only where they are said, as before they could be."""


def body_hash(request: Request) -> str:
    """32 hex digits over what is asked for, without when: the same words said again are the same request."""
    fields = msgspec.structs.asdict(request)
    del fields["issued_at_ns"]
    if isinstance(request, inputs.LeaseRequest):
        if not request.domain:
            # As it was hashed before leases could be for a domain.
            del fields["domain"], fields["gone_ms"], fields["keep"]
        if not request.driver and not request.unmanaged:
            # As before it could be said how they are handed over.
            del fields["driver"], fields["unmanaged"]
        for name in _SAID_SINCE_SCHEDULING:
            if not fields[name]:
                del fields[name]
    return hashlib.sha256(_encoder.encode((verb_of(request), fields))).hexdigest()[:32]
