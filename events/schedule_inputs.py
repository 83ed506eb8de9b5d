"""Requests about waiting, keeping and handing on, and what operators say of classes, quotas, devices and hosts. See
`inputs` for all others, and for the fields that all have.
"""

import msgspec

from leasehold.events.identities import Holder, Principal, RequestId
from leasehold.events.scheduling import Constraint, Need


class WithdrawRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="withdraw.v1"
):
    """Take a waiting request of one's own back. An operator takes anybody's with `RevokeRequest`."""

    request_id: RequestId
    issued_at_ns: int
    queued: int
    """Its place in the queue, as it was answered."""
    reason: str = ""


class RenewManyRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="renew_many.v1"
):
    """Keep many leases, each for as long as it was granted, from now. Those that cannot be kept are answered with their
    reasons, and keep nobody else's from being renewed.
    """

    request_id: RequestId
    issued_at_ns: int
    leases: tuple[tuple[int, int], ...]
    """Each with its token; at most `limits.RENEWALS_PER_REQUEST_MAX`."""


class TransferRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="transfer.v1"
):
    """Give a lease to another holder, of the same principal or of another: its token is a new one from then on."""

    request_id: RequestId
    issued_at_ns: int
    lease: int
    token: int
    holder: Holder
    principal: Principal = Principal("")
    """Whose it is from then on; empty: the asker's."""


class ReserveRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="reserve.v1"
):
    """The first step of a handover: devices elsewhere for a domain that moves, in place of those of `lease`. They are
    held and prepared, but their token opens nothing before the switch. Fields as of `LeaseRequest`; holder, domain and
    terms are those of `lease`.
    """

    request_id: RequestId
    issued_at_ns: int
    lease: int
    token: int
    ttl_ms: int
    devices: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    host: str = ""
    tolerates: tuple[str, ...] = ()
    driver: str = ""


class SwitchRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="switch.v1"
):
    """The second step: the domain has moved, the source has let go. The source lease ends, and the reserved one counts.

    Refused while a domain is seen to have a device of the source lease there.
    """

    request_id: RequestId
    issued_at_ns: int
    lease: int
    """The reserved one, with its token."""
    token: int


class SetClassRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="set_class.v1"
):
    """An operator names a selector; one of that name is replaced."""

    request_id: RequestId
    issued_at_ns: int
    name: str
    select: str


class RemoveClassRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="remove_class.v1"
):
    """An operator takes a class away. Refused while a quota or a waiting request names it."""

    request_id: RequestId
    issued_at_ns: int
    name: str


class SetQuotaRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="set_quota.v1"
):
    """An operator says how many devices of a class a tenant may have at a time. Who has more already keeps them."""

    request_id: RequestId
    issued_at_ns: int
    tenant: Principal
    devices_max: int
    """-1: takes the quota away."""
    device_class: str = ""


class CordonRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="cordon.v1"
):
    """An operator says that nothing more of a device, or (`device` empty) of a host, is to be granted."""

    request_id: RequestId
    issued_at_ns: int
    reason: str
    host: str = ""
    device: str = ""


class UncordonRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="uncordon.v1"
):
    """An operator says that it is to be granted again."""

    request_id: RequestId
    issued_at_ns: int
    host: str = ""
    device: str = ""


class TaintRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="taint.v1"
):
    """An operator puts a taint on a device or (`device` empty) on a host; with the effect `evict` living leases that do
    not tolerate it end after `notice_ms`. Draining is the taint `drain` with that effect.
    """

    request_id: RequestId
    issued_at_ns: int
    name: str
    reason: str
    host: str = ""
    device: str = ""
    value: str = ""
    effect: str = "no_grant"
    """One of `scheduling.EFFECTS`."""
    notice_ms: int = 0


class UntaintRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="untaint.v1"
):
    """An operator takes a taint away."""

    request_id: RequestId
    issued_at_ns: int
    name: str
    host: str = ""
    device: str = ""


class SetPolicyRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="set_policy.v1"
):
    """An operator says how a device may be handed out: as of `scheduling.Policy`."""

    request_id: RequestId
    issued_at_ns: int
    device: str
    host: str = ""
    share_max: int = 1
    clean: bool = False


class ConfirmCleanRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="confirm_clean.v1"
):
    """An operator, or a clean-up job with that role, says by name that a device was cleaned behind its last lease."""

    request_id: RequestId
    issued_at_ns: int
    device: str
    reason: str
    host: str = ""


class HealRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="heal.v1"
):
    """An operator says by name that a device which failed too often works again."""

    request_id: RequestId
    issued_at_ns: int
    device: str
    reason: str
    host: str = ""


ScheduleRequest = (
    WithdrawRequest
    | RenewManyRequest
    | TransferRequest
    | ReserveRequest
    | SwitchRequest
    | SetClassRequest
    | RemoveClassRequest
    | SetQuotaRequest
    | CordonRequest
    | UncordonRequest
    | TaintRequest
    | UntaintRequest
    | SetPolicyRequest
    | ConfirmCleanRequest
    | HealRequest
)
