"""The fence: whether a token may act on a device. The token of a lease is the position of its grant."""

from leasehold.events.identities import DeviceId
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import conflicts
from leasehold.projections.state import State


def check_token(state: State, device: DeviceId, token: int) -> Refusal | None:
    """Why `token` may not act on `device`; `None` if it may: it is the living lease's and not below the floor."""
    row = state.devices.get(conflicts.physical_device(device))
    if row is None:
        return Refusal(code=RefusalCode.DEVICE_UNKNOWN, message=f"no device {device} is known")
    lease = state.leases.get(row.lease)
    if lease is None or lease.ended or lease.token != token or token < row.floor:
        now = f"it is leased as {lease_id_text(row.lease)}" if lease and not lease.ended else "it is not leased"
        return Refusal(
            code=RefusalCode.TOKEN_STALE,
            message=f"token {token} may not act on {device}: {now}, and tokens below {row.floor} are shut out",
            help="stop using the device; ask for a new lease",
        )
    return None
