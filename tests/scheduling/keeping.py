"""Requests about keeping and handing on, to the ledger in memory."""

from typing import Any

from leasehold.events import inputs, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, Principal
from leasehold.projections.fencing import check_token
from leasehold.projections.snapshots import decode_state, encode_state
from tests.projections.ledger import A, Ledger, device


def renew_many(ledger: Ledger, *leases: tuple[int, int], principal: Principal = A, **fields: Any) -> Answer:
    """Renew these leases, each with its token, by one request."""
    return ledger.ask(_made(ledger, schedule_inputs.RenewManyRequest, leases=leases, **fields), principal)


def transfer_of(ledger: Ledger, lease: int, holder: str, **fields: Any) -> schedule_inputs.TransferRequest:
    """A request that gives a lease to somebody, by the token that counts unless told otherwise."""
    token = ledger.state.leases[lease].token
    fields = {"token": token, "holder": Holder(holder), **fields}
    request: schedule_inputs.TransferRequest = _made(ledger, schedule_inputs.TransferRequest, lease=lease, **fields)
    return request


def transfer(
    ledger: Ledger, lease: int, holder: str, *, principal: Principal = A, to: str = "", **fields: Any
) -> Answer:
    """Give a lease to a holder, of the principal `to` if that is another."""
    return ledger.ask(transfer_of(ledger, lease, holder, principal=Principal(to), **fields), principal)


def reserve_of(ledger: Ledger, lease: int, *devices: str, **fields: Any) -> schedule_inputs.ReserveRequest:
    """A request that reserves these devices (ids) in the place of a lease."""
    fields = {"ttl_ms": 60_000, "token": ledger.state.leases[lease].token, "devices": devices, **fields}
    request: schedule_inputs.ReserveRequest = _made(ledger, schedule_inputs.ReserveRequest, lease=lease, **fields)
    return request


def reserve(ledger: Ledger, lease: int, *devices: str, principal: Principal = A, **fields: Any) -> Answer:
    """Reserve them."""
    return ledger.ask(reserve_of(ledger, lease, *devices, **fields), principal)


def switch_of(ledger: Ledger, lease: int, **fields: Any) -> schedule_inputs.SwitchRequest:
    """A request that lets a reserved lease count."""
    fields = {"token": ledger.state.leases[lease].token, **fields}
    request: schedule_inputs.SwitchRequest = _made(ledger, schedule_inputs.SwitchRequest, lease=lease, **fields)
    return request


def switch(ledger: Ledger, lease: int, *, principal: Principal = A, **fields: Any) -> Answer:
    """Let a reserved lease count."""
    return ledger.ask(switch_of(ledger, lease, **fields), principal)


def renewal(ledger: Ledger, lease: int, token: int, **fields: Any) -> inputs.RenewRequest:
    """A renewal with any token."""
    request: inputs.RenewRequest = _made(ledger, inputs.RenewRequest, lease=lease, token=token, **fields)
    return request


def _made(ledger: Ledger, kind: type[Any], **fields: Any) -> Any:
    return kind(**{"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns, **fields})


def acts(ledger: Ledger, text: str, token: int) -> bool:
    """Whether a token opens a device, named in short."""
    return check_token(ledger.state, device(text), token) is None


def same_from_snapshot(ledger: Ledger) -> bool:
    """Whether the state survives being written down and read again, to the same bytes."""
    body = encode_state(ledger.state)
    state = decode_state(body)
    return state is not None and encode_state(state) == body
