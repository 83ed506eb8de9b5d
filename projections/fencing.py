"""The fence: whether a token may act on a device, or who has it on a lease.

The token of a lease is the position of its grant, of its last transfer, or of its switch, in the ledger's era: a
restore gives it a new one, and all older tokens, also those that the restored ledger knows nothing of, are below all
floors.
"""

from typing import Final

from leasehold.events.identities import DeviceId, Principal
from leasehold.events.position import era_of_token, lease_id_text, position_of_token
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import conflicts
from leasehold.projections.rows import LeaseState
from leasehold.projections.state import State

HELP_RESTORED: Final = (
    "ask the request of the lease's grant again, under its request id, or list your leases: the answer has the token "
    "that counts now"
)
"""For the holder of a token of an older era."""
_HELP_STALE: Final = "stop using the device; ask for a new lease"


def check_token(state: State, device: DeviceId, token: int) -> Refusal | None:
    """Why `token` may not act on `device`; `None` if it may: it is the living lease's and not below the floor."""
    row = state.devices.get(conflicts.physical_device(device))
    if row is None:
        return Refusal(code=RefusalCode.DEVICE_UNKNOWN, message=f"no device {device} is known")
    lease = state.leases.get(row.lease)
    if lease is None or lease.ended or lease.token != token or token < row.floor:
        if era_of_token(token) < state.head.era:
            return Refusal(
                code=RefusalCode.TOKEN_STALE,
                message=f"token {token} may not act on {device}: it is from before the ledger was restored",
                help=HELP_RESTORED,
            )
        now = f"it is leased as {lease_id_text(row.lease)}" if lease and not lease.ended else "it is not leased"
        return Refusal(
            code=RefusalCode.TOKEN_STALE,
            message=f"token {token} may not act on {device}: {now}, and tokens below {row.floor} are shut out",
            help=_HELP_STALE,
        )
    return reserved(device, row.lease, lease.reserved_for) if lease.reserved_for else None


def reserved(device: str, lease: int, source: int = 0) -> Refusal:
    """Why the token of a lease that is reserved opens nothing; `source`: in whose place it is to stand, if known."""
    name = lease_id_text(lease)
    for_ = f" for {lease_id_text(source)}" if source else ""
    return Refusal(
        code=RefusalCode.LEASE_RESERVED,
        message=f"{device} is only reserved by {name}{for_}: its token opens nothing before the switch",
        help=f"see that the domain has let go of what it has, then: leasehold switch {name}",
    )


def of_lease(state: State, principal: Principal, number: int, token: int) -> Refusal | None:
    """Why this principal with this token may not act on this lease, if it may not."""
    lease = state.leases.get(number)
    if lease is not None and lease.principal == principal and lease.token == token and not lease.ended:
        return None
    name = lease_id_text(number)
    if lease is None:
        return Refusal(code=RefusalCode.LEASE_UNKNOWN, message=f"no lease {name} is known", help="list your leases")
    if lease.principal != principal:
        return Refusal(
            code=RefusalCode.NOT_YOURS,
            message=f"lease {name} belongs to {lease.principal}",
            help="only the principal that asked for a lease can renew or release it",
        )
    if token != lease.token:
        return _stale(state, name, lease, token)
    return Refusal(
        code=RefusalCode.LEASE_ENDED,
        message=f"lease {name} was ended ({lease.ended}): its token is stale",
        help="ask for a new lease",
    )


def _stale(state: State, name: str, lease: LeaseState, token: int) -> Refusal:
    message = f"token {token} is not the token of lease {name}"
    help_text = "use the token that the grant was answered with"
    if position_of_token(token) < lease.transferred_position:
        message += f": it was given to {lease.holder}"
        help_text = "stop using its devices; who has it now finds its token in the list of his leases"
    elif era_of_token(token) < state.head.era:
        message += ": it is from before the ledger was restored"
        help_text = HELP_RESTORED
    return Refusal(code=RefusalCode.TOKEN_STALE, message=message, help=help_text)
