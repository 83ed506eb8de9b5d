"""What a binder says to hooks and helpers of its host: whether a token may act, whether a domain may have devices."""

from collections.abc import Sequence
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey, physical_key
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.projections.fencing import reserved
from leasehold.projections.handing import Handing

HELP_STALE: Final = "stop using the device; ask for a new lease"
HELP_CUT_OFF: Final = "see that the bus and the allocator run, and are reached from here"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a domain may have some devices."""

    refusal: Refusal | None = None
    is_ready: bool = True
    """All of them are handed over; if not, that is to be waited for."""
    leases: tuple[int, ...] = ()
    """Of which leases they are."""


def check_token(handing: Handing, key: DeviceKey, token: int, now_ms: int) -> Refusal | None:
    """Why `token` may not act on a device; `None`: it is the living lease's, as far as can be known here.

    One that is below the floor is refused whether the log is heard or not.
    """
    key = physical_key(key)
    hold, floor = handing.log.holds.get(key), handing.note_of(key).floor
    if token < max(floor, hold.floor if hold is not None else 0):
        return _stale(handing, key, token, floor)
    if handing.is_cut_off(now_ms):
        return _cut_off(key)
    if hold is None or not hold.token or hold.token != token:
        return _stale(handing, key, token, floor)
    if handing.is_another(key):
        return _replaced(key)
    return reserved(key, hold.lease) if hold.reserved else None


def may_have(handing: Handing, uuid: str, name: str, keys: Sequence[DeviceKey], now_ms: int) -> Verdict:
    """Whether a domain may have these devices: each must be held by a living lease that is for it, by its uuid, or, of
    a lease for no domain, by its uuid or name as the holder; and that is not only reserved for it.
    """
    if not keys:
        return Verdict()
    if handing.is_cut_off(now_ms):
        return Verdict(refusal=_cut_off(keys[0]))
    physical = [physical_key(key) for key in keys]
    if others := [key for key in physical if handing.is_another(key)]:
        return Verdict(refusal=_replaced(others[0]))
    holds = handing.log.holds
    waiting = [key for key in physical if key in holds and holds[key].reserved and _is_its(holds[key], uuid, name)]
    if waiting:
        return Verdict(refusal=reserved(waiting[0], holds[waiting[0]].lease))
    blockers = [found for key in physical if (found := _blocker(handing.log.holds.get(key), key, uuid, name))]
    if blockers:
        most = limits.BLOCKERS_PER_REFUSAL_MAX
        said = "; ".join(f"{blocker.device}: {blocker.why}" for blocker in blockers[:most])
        said += f"; and {len(blockers) - most} more" if len(blockers) > most else ""
        code = RefusalCode.DEVICE_HELD if any(blocker.lease for blocker in blockers) else RefusalCode.LEASE_UNKNOWN
        message, help_ = f"domain {name or uuid} may not have {said}", blockers[0].help
        return Verdict(refusal=Refusal(code=code, message=message, blockers=tuple(blockers[:most]), help=help_))
    return Verdict(
        is_ready=all(handing.is_ready(key) for key in physical),
        leases=tuple(sorted({handing.log.holds[key].lease for key in physical})),
    )


def _is_its(hold: Hold, uuid: str, name: str) -> bool:
    """Whether a living lease is for a domain."""
    return bool(hold.token) and (hold.domain == uuid if hold.domain else hold.holder in (uuid, name))


def _blocker(hold: Hold | None, key: DeviceKey, uuid: str, name: str) -> Blocker | None:
    """What keeps a domain from having a device."""
    help_ = f"lease it for the domain: leasehold lease {key} --for HOLDER --domain {uuid}"
    if hold is None or not hold.lease:
        return Blocker(device=key, rule="no_lease", why="no lease holds it", help=help_)
    if _is_its(hold, uuid, name):
        return None
    lease = lease_id_text(hold.lease)
    if hold.token:
        # For whom it is: else its own holder would read that he has it, and not why that is not enough.
        whose = f"domain {hold.domain}" if hold.domain else "no domain"
        said, help_ = f"{hold.holder} holds it by {lease}, which is for {whose}", f"release {lease}; {help_}"
    else:
        said, help_ = f"it is being given back after {lease}", f"wait until it is free; {help_}"
    return Blocker(
        device=key, rule="same_device", why=said, lease=hold.lease, holder=hold.holder, since_ns=hold.granted_at_ns,
        since_position=hold.lease, help=help_,
    )  # fmt: skip


def _stale(handing: Handing, key: DeviceKey, token: int, floor: int) -> Refusal:
    hold = handing.log.holds.get(key)
    is_leased = hold is not None and hold.token
    now = f"it is leased as {lease_id_text(hold.lease)}" if hold is not None and is_leased else "it is not leased"
    floor = max(floor, hold.floor if hold is not None else 0)
    message = f"token {token} may not act on {key}: {now}, and tokens below {floor} are shut out"
    return Refusal(code=RefusalCode.TOKEN_STALE, message=message, help=HELP_STALE)


def _replaced(key: DeviceKey) -> Refusal:
    message = f"another thing sits at {key} than was leased and handed over"
    return Refusal(code=RefusalCode.DEVICE_MISSING, message=message, help="end the lease, and lease what is there")


def _cut_off(key: DeviceKey) -> Refusal:
    silent_s = limits.CUT_OFF_MS // 1000
    message = f"nothing can be said of {key}: the binder is cut off, the log was not heard for {silent_s} s"
    return Refusal(code=RefusalCode.HOST_STALE, message=message, help=HELP_CUT_OFF)
