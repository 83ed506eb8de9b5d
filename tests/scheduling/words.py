"""What operators say of devices and hosts, to the ledger in memory; and how things stand behind it."""

from typing import Any

from leasehold.events import schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import DeviceId, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.views import device_word
from tests.projections.ledger import Ledger, refusal_of

OPS = Principal("ops")


def say(ledger: Ledger, kind: type[Any], principal: Principal = OPS, **fields: Any) -> Answer:
    """An operator's request of this kind; why is said where it has to be."""
    said = {"reason": "kernel update"} if "reason" in kind.__struct_fields__ else {}
    fields = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns, **said, **fields}
    return ledger.ask(kind(**fields), principal)


def cordon(ledger: Ledger, **fields: Any) -> Answer:
    """Nothing more of it is granted."""
    return say(ledger, schedule_inputs.CordonRequest, **fields)


def uncordon(ledger: Ledger, **fields: Any) -> Answer:
    """It is granted again."""
    return say(ledger, schedule_inputs.UncordonRequest, **fields)


def taint(ledger: Ledger, name: str = "broken-fan", **fields: Any) -> Answer:
    """Who does not tolerate it is kept away."""
    return say(ledger, schedule_inputs.TaintRequest, name=name, **fields)


def drain(ledger: Ledger, **fields: Any) -> Answer:
    """Living leases end, too."""
    return taint(ledger, "drain", effect="evict", **fields)


def untaint(ledger: Ledger, name: str = "broken-fan", **fields: Any) -> Answer:
    """Nobody is kept away by it any more."""
    return say(ledger, schedule_inputs.UntaintRequest, name=name, **fields)


def policy(ledger: Ledger, device: str, **fields: Any) -> Answer:
    """How a device is handed out."""
    return say(ledger, schedule_inputs.SetPolicyRequest, device=device, **fields)


def clean(ledger: Ledger, device: str) -> Answer:
    """Somebody has cleaned it."""
    return say(ledger, schedule_inputs.ConfirmCleanRequest, device=device)


def heal(ledger: Ledger, device: str) -> Answer:
    """It works again."""
    return say(ledger, schedule_inputs.HealRequest, device=device)


def code(answer: Answer) -> RefusalCode:
    """Why not, where the way out is told, too."""
    refusal = refusal_of(answer)
    assert refusal.help, refusal
    return refusal.code


def word(ledger: Ledger, device: DeviceId) -> str:
    """The state of a device, as people see it."""
    return device_word(ledger.state, device)[0]


def kinds(ledger: Ledger) -> list[str]:
    """The events of the last record, but for what each report begins with."""
    names = [type(event).__name__ for event in ledger.events]
    return [name for name in names if name != "ObservationsAccepted"]


def holds_after_restart(ledger: Ledger) -> None:
    """The state from its bytes has the same rows and all that is derived from them, and nothing is due otherwise."""
    state = ledger.state
    again = decode_state(encode_state(state))
    assert again is not None
    assert encode_state(again) == encode_state(state)
    for name, table in vars(state.indexes).items():
        if isinstance(table, dict):
            assert dict(vars(again.indexes)[name]) == dict(table), name
    for name in ("evictions", "failing"):
        assert vars(again)[name].next_ns() == vars(state)[name].next_ns(), name
