"""Which messages there are, by the names under which they are published, and what each is made of."""

from enum import StrEnum
from typing import Any, Final, get_args

import msgspec

from leasehold.events import inputs, schedule_inputs
from leasehold.events.answers import Answer, Heard, Heartbeat
from leasehold.events.event_types import Event
from leasehold.events.inputs import Observed, Request
from leasehold.events.old_events import OldEvent
from leasehold.events.questions import PAST_QUESTIONS, QUESTIONS, Reading
from leasehold.services.ledger.api import PublishReply


class Way(StrEnum):
    """Who says it. What is allowed to change of a type depends on it."""

    TOLD = "told"
    """By Leasehold: events, answers. It may say more than before, in the same words."""
    ASKED = "asked"
    """By others, and read strictly: requests, questions. It may be asked for less than before."""


class Message(msgspec.Struct, frozen=True):
    """A kind of message. `name` ends in a version."""

    name: str
    kind: Any
    way: Way


def _tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def _members(union: Any) -> tuple[Any, ...]:
    return get_args(union) or (union,)


EVENTS: Final[dict[str, Any]] = {_tag(kind): kind for kind in (*_members(Event), *_members(OldEvent))}
"""By tag; the older versions, too, which stand in old records."""
REQUESTS: Final[dict[str, str]] = {
    "lease": _tag(inputs.LeaseRequest),
    "renew": _tag(inputs.RenewRequest),
    "release": _tag(inputs.ReleaseRequest),
    "confirm_free": _tag(inputs.ConfirmFreeRequest),
    "create_device": _tag(inputs.CreateDeviceRequest),
    "destroy_device": _tag(inputs.DestroyDeviceRequest),
    "retire_agent": _tag(inputs.RetireAgentRequest),
    "prepare": _tag(inputs.PrepareRequest),
    "reattach": _tag(inputs.ReattachRequest),
    "operate_device": _tag(inputs.OperateDeviceRequest),
    "revoke": _tag(inputs.RevokeRequest),
    "declare_dead": _tag(inputs.DeclareDeadRequest),
    "withdraw": _tag(schedule_inputs.WithdrawRequest),
    "renew_many": _tag(schedule_inputs.RenewManyRequest),
    "transfer": _tag(schedule_inputs.TransferRequest),
    "reserve": _tag(schedule_inputs.ReserveRequest),
    "switch": _tag(schedule_inputs.SwitchRequest),
    "set_class": _tag(schedule_inputs.SetClassRequest),
    "remove_class": _tag(schedule_inputs.RemoveClassRequest),
    "set_quota": _tag(schedule_inputs.SetQuotaRequest),
    "cordon": _tag(schedule_inputs.CordonRequest),
    "uncordon": _tag(schedule_inputs.UncordonRequest),
    "taint": _tag(schedule_inputs.TaintRequest),
    "untaint": _tag(schedule_inputs.UntaintRequest),
    "set_policy": _tag(schedule_inputs.SetPolicyRequest),
    "confirm_clean": _tag(schedule_inputs.ConfirmCleanRequest),
    "heal": _tag(schedule_inputs.HealRequest),
}
"""Verb -> name of the message."""
ASKABLE: Final[dict[str, str]] = {verb: f"question_{verb}.v1" for verb in (*QUESTIONS, *PAST_QUESTIONS)}
"""Verb of a question -> name of the message."""
ANSWER: Final = "answer.v1"
READING: Final = "reading.v1"
REPORT: Final = _tag(Observed)
KEPT: Final = "kept.v1"
HEARTBEAT: Final = "heartbeat.v1"
HEARD: Final = "heard.v1"


def messages() -> dict[str, Message]:
    """All of them, by name."""
    told: dict[str, Any] = {**EVENTS, ANSWER: Answer, READING: Reading, KEPT: PublishReply, HEARD: Heard}
    asked: dict[str, Any] = {_tag(kind): kind for kind in get_args(Request)}
    asked |= {ASKABLE[verb]: kind for verb, kind in (QUESTIONS | PAST_QUESTIONS).items()}
    asked |= {REPORT: Observed, HEARTBEAT: Heartbeat}
    found = [Message(name, kind, Way.TOLD) for name, kind in told.items()]
    found += [Message(name, kind, Way.ASKED) for name, kind in asked.items()]
    return {message.name: message for message in sorted(found, key=lambda message: message.name)}
