"""Questions at the door: every field checked, unknown ones refused."""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import codec, domains, hostdevs, identities, limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.inputs import Request
from leasehold.events.questions import (
    PAST_QUESTIONS,
    QUESTIONS,
    Consider,
    History,
    ListClasses,
    ListHostdevs,
    Moment,
    Question,
    Sync,
    Who,
)
from leasehold.events.schedule_checks import check_name
from leasehold.projections import nodedev, selectors

SYNC_ROWS_MAX: Final = 200
"""Descriptions take up to 8 KiB each, and an answer has to fit into a message."""
AFTER_CHARS_MAX: Final = limits.NAME_CHARS_MAX + 1 + limits.KEY_CHARS_MAX
DOMAIN_TEXT_CHARS_MAX: Final = limits.DOMAIN_NAME_CHARS_MAX
"""Longer than any id of a domain."""
KINDS: Final = ("device", "lease", "queued", "host", "domain", "holder", "class", "principal")
"""In the order in which a name is looked for: a domain is called whatever its owner likes, `node1` or `L3584`, too."""
"""What a history may be of, in the order in which a bare name is tried."""
USED_BY: Final = ("device", "holder")
HOSTDEV_STATES: Final = ("active", "inactive")
EVERY_NS_MIN: Final = 10**9
DEPTH_MAX: Final = 32
_POSITION_MAX: Final = 2**53 - 1
_TIME_MAX_NS: Final = 2**63 - 1
_ALL: Final[dict[str, type[Question]]] = {**QUESTIONS, **PAST_QUESTIONS}
_decoders: Final = {verb: msgspec.json.Decoder(kind) for verb, kind in _ALL.items()}


def decode_question(verb: str, body: bytes) -> Question:
    """Read a question; nothing at all stands for `{}`.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if verb not in _decoders:
        raise InvalidInputError(f"{verb[:40]!r} is none of {', '.join(_ALL)}", field="verb")
    if len(body) > limits.REQUEST_BYTES_MAX:
        raise InvalidInputError(f"{len(body)} bytes; at most {limits.REQUEST_BYTES_MAX}", field="question")
    question: Question = codec.decode_checked(_decoders[verb], body or b"{}", what="question")
    check_question(question)
    return question


def considered_request(question: Consider) -> Request:
    """The request that a question is about, read as at the allocator's door; it need not say its id and time.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    try:
        said = msgspec.json.decode(question.request)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInputError(f"not JSON ({error})", field="request") from error
    if not isinstance(said, dict):
        raise InvalidInputError("an object is expected", field="request")
    body = codec.encode({"request_id": "considered", "issued_at_ns": 1, **said})
    request = codec.decode_request(question.verb, body)
    selectors.check_request(request)
    return request


def check_question(question: Question) -> None:
    """The bounds of a question's fields.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    for field in question.__struct_fields__:
        _CHECKS[field](question, getattr(question, field))


def _check_name(question: Question, name: str) -> None:
    if isinstance(question, ListClasses):
        if name:
            check_name(name, "name")
        return
    _check_text(name, "name", 1, limits.DEVICE_TEXT_CHARS_MAX)


def _check_after(_question: Question, after: str | int) -> None:
    if isinstance(after, int):
        _check_range(after, 0, _POSITION_MAX, "after")
    else:
        _check_text(after, "after", 0, AFTER_CHARS_MAX)


def _check_cap(_question: Question, cap: str) -> None:
    for word in cap.split(",") if cap else ():
        if not nodedev.capability_type(word):
            raise InvalidInputError(f"{word[:40]!r} is none of {', '.join(nodedev.CAPABILITY_TYPES)}", field="cap")


def _check_bus(question: Question, bus: str) -> None:
    known = hostdevs.BUSES if isinstance(question, ListHostdevs) else nodedev.BUSES
    if bus and bus not in known:
        raise InvalidInputError(f"{bus[:40]!r} is none of {', '.join(known)}", field="bus")


def _check_limit(question: Question, limit: int) -> None:
    most = limits.HISTORY_ROWS_MAX if isinstance(question, History) else limits.LIST_ROWS_MAX
    _check_range(limit, 1, SYNC_ROWS_MAX if isinstance(question, Sync) else most, "limit")


def _check_kind(_question: Question, kind: str) -> None:
    if kind and kind not in KINDS:
        raise InvalidInputError(f"{kind[:40]!r} is none of {', '.join(KINDS)}", field="kind")


def _check_host(question: Question, host: str) -> None:
    if host or isinstance(question, Sync):
        identities.parse_host(host)


def _check_holder(_question: Question, holder: str) -> None:
    if holder:
        identities.parse_holder(holder)


def _check_agent(_question: Question, agent: str) -> None:
    if not re.fullmatch(identities.AGENT_PATTERN, agent):
        raise InvalidInputError(f"{agent[:40]!r} is not an agent's name, like watcher", field="agent")


def _check_device(question: Question, device: str) -> None:
    # Where it may be left out, an empty one means all of them.
    _check_text(device, "device", int(isinstance(question, Who)), limits.DEVICE_TEXT_CHARS_MAX)


def _check_domain(_question: Question, domain: str) -> None:
    _check_text(domain, "domain", 0, DOMAIN_TEXT_CHARS_MAX)


def _check_state(question: Question, state: str) -> None:
    known = HOSTDEV_STATES if isinstance(question, ListHostdevs) else domains.STATES
    if state and state not in known:
        raise InvalidInputError(f"{state[:40]!r} is none of {', '.join(known)}", field="state")


def _check_moment(moment: Moment, field: str) -> None:
    _check_range(moment.position, 0, _POSITION_MAX, f"{field}.position")
    _check_range(moment.ns, 0, _TIME_MAX_NS, f"{field}.ns")
    if moment.position and moment.ns:
        raise InvalidInputError("a position or a time, not both", field=field)


def _check_by(_question: Question, by: str) -> None:
    if by not in USED_BY:
        raise InvalidInputError(f"{by[:40]!r} is none of {', '.join(USED_BY)}", field="by")


def _check_every(_question: Question, every_ns: int) -> None:
    if every_ns:
        _check_range(every_ns, EVERY_NS_MIN, _TIME_MAX_NS, "every_ns")


def _check_request_id(_question: Question, request_id: str) -> None:
    identities.parse_request_id(request_id)


def _check_principal(_question: Question, principal: str) -> None:
    if principal:
        identities.parse_principal(principal)


def _check_tenant(_question: Question, tenant: str) -> None:
    if tenant:
        identities.parse_principal(tenant)


def _check_class(_question: Question, name: str) -> None:
    if name:
        check_name(name, "device_class")


def _check_verb(_question: Question, verb: str) -> None:
    if verb not in codec.VERBS:
        raise InvalidInputError(f"{verb[:40]!r} is none of {', '.join(codec.VERBS)}", field="verb")


def _check_text(text: str, field: str, chars_min: int, chars_max: int) -> None:
    if not chars_min <= len(text) <= chars_max or not text.isprintable():
        said = f"{text[:40]!r} is not a printable text of {chars_min} to {chars_max} characters"
        raise InvalidInputError(said, field=field)


def _check_range(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{value} is not between {low} and {high}", field=field)


_CHECKS: Final[dict[str, Callable[[Question, Any], None]]] = {
    "min_position": lambda _question, value: _check_range(value, 0, _POSITION_MAX, "min_position"),
    "name": _check_name,
    "after": _check_after,
    "limit": _check_limit,
    "kind": _check_kind,
    "host": _check_host,
    "holder": _check_holder,
    "agent": _check_agent,
    "ended": lambda _question, _value: None,
    "present": lambda _question, _value: None,
    "cap": _check_cap,
    "bus": _check_bus,
    "parent": lambda _question, text: _check_text(text, "parent", 0, limits.DEVICE_TEXT_CHARS_MAX),
    "driver": lambda _question, text: _check_text(text, "driver", 0, limits.DEVICE_TEXT_CHARS_MAX),
    "count_only": lambda _question, _value: None,
    "at": lambda _question, moment: _check_moment(moment, "at"),
    "since": lambda _question, moment: _check_moment(moment, "since"),
    "to": lambda _question, moment: _check_moment(moment, "to"),
    "device": _check_device,
    "domain": _check_domain,
    "state": _check_state,
    "request_id": _check_request_id,
    "principal": _check_principal,
    "depth": lambda _question, value: _check_range(value, 1, DEPTH_MAX, "depth"),
    "by": _check_by,
    "every_ns": _check_every,
    "free": lambda _question, _value: None,
    "tenant": _check_tenant,
    "device_class": _check_class,
    "verb": _check_verb,
    "request": lambda _question, _value: None,
}
