"""The fence: whether a token may act on a device.

The token of a lease is the position of its grant, in the ledger's era: a restore gives it a new one, and all older
tokens, also those that the restored ledger knows nothing of, are below all floors.
"""

from typing import Final

from leasehold.events.identities import DeviceId
from leasehold.events.position import era_of_token, lease_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import conflicts
from leasehold.projections.state import State

HELP_RESTORED: Final = (
    "ask the request of the lease's grant again, under its request id, or list your leases: the answer has the token "
    "that counts now"
)
"""For the holder of a token of an older era."""


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
            help="stop using the device; ask for a new lease",
        )
    return None
