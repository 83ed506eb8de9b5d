"""The bounds of what can be asked about needs, waiting, keeping and handing on. A selector's own form is not looked at
here: `projections.selectors` reads it.
"""

import re
from typing import Final

import msgspec

from leasehold.events import identities, limits, schedule_inputs
from leasehold.events.bounds import check_range, check_text
from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import parse_stub
from leasehold.events.inputs import LeaseRequest
from leasehold.events.schedule_inputs import ReserveRequest, ScheduleRequest
from leasehold.events.scheduling import CONSTRAINTS, EFFECTS, MODES, Constraint, Need, Option

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*|\[\"[^\"\\]{1,128}\"\]){0,7}")


def check_wanted(request: LeaseRequest | ReserveRequest) -> None:
    """Named devices or needs, one of both, within their bounds.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if bool(request.devices) == bool(request.needs):
        raise InvalidInputError("name devices, or say what is needed: one of both", field="devices")
    check_range(len(request.devices), 0, limits.DEVICES_PER_LEASE_MAX, "devices")
    for device in request.devices:
        check_text(device, "devices", limits.DEVICE_TEXT_CHARS_MAX)
    if request.needs or request.constraints:
        _check_needs(request)
    if request.tolerates:
        _check_tolerations(request.tolerates)


def _check_needs(request: LeaseRequest | ReserveRequest) -> None:
    check_range(len(request.needs), 0, limits.NEEDS_PER_REQUEST_MAX, "needs")
    for number, need in enumerate(request.needs):
        _check_need(need, f"needs[{number}]")
    names = names_of(request.needs)
    if len(set(names)) != len(names):
        raise InvalidInputError("two needs have one name", field="needs")
    if sum(_least(need) for need in request.needs) > limits.DEVICES_PER_LEASE_MAX:
        raise InvalidInputError(f"a lease has at most {limits.DEVICES_PER_LEASE_MAX} devices", field="needs")
    check_range(len(request.constraints), 0, limits.CONSTRAINTS_PER_REQUEST_MAX, "constraints")
    for number, constraint in enumerate(request.constraints):
        _check_constraint(constraint, names, f"constraints[{number}]")
    if request.constraints and not request.needs:
        raise InvalidInputError("they are about needs, and devices are named", field="constraints")


def names_of(needs: tuple[Need, ...]) -> list[str]:
    """By what constraints and reasons call these needs."""
    return [need.name or str(number) for number, need in enumerate(needs, 1)]


def _least(need: Need) -> int:
    return min((option.count for option in need.first_of), default=need.count)


def _check_need(need: Need, field: str) -> None:
    if need.name:
        check_name(need.name, f"{field}.name")
    if not need.first_of:
        _check_option(need, field)
        return
    if need.select or need.device_class or need.count != 1 or need.every:
        raise InvalidInputError("what is needed stands in first_of, or here: one of both", field=f"{field}.first_of")
    check_range(len(need.first_of), 1, limits.OPTIONS_PER_NEED_MAX, f"{field}.first_of")
    for number, option in enumerate(need.first_of):
        _check_option(option, f"{field}.first_of[{number}]")


def _check_option(option: Need | Option, field: str) -> None:
    if not option.select and not option.device_class:
        raise InvalidInputError("a selector, a class, or both", field=f"{field}.select")
    if option.select:
        check_selector_text(option.select, f"{field}.select")
    if option.device_class:
        check_name(option.device_class, f"{field}.device_class")
    check_range(option.count, 1, limits.DEVICES_PER_LEASE_MAX, f"{field}.count")


def check_selector_text(text: str, field: str) -> None:
    """Whether it is of a selector's length, and can be written down."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("it has half of a character (a lone surrogate)", field=field) from None
    check_range(size, 1, limits.SELECTOR_BYTES_MAX, field)


def _check_constraint(constraint: Constraint, names: list[str], field: str) -> None:
    if constraint.kind not in CONSTRAINTS:
        raise InvalidInputError(f"{constraint.kind[:40]!r} is none of {', '.join(CONSTRAINTS)}", field=f"{field}.kind")
    if not _ATTRIBUTE.fullmatch(constraint.attribute) or len(constraint.attribute) > limits.KEY_CHARS_MAX:
        raise InvalidInputError(
            f"{constraint.attribute[:80]!r} is no attribute's name, like numa_node or pci.class",
            field=f"{field}.attribute",
        )
    for name in constraint.needs:
        if name not in names:
            raise InvalidInputError(f"there is no need {name[:80]!r}", field=f"{field}.needs")


def _check_tolerations(tolerates: tuple[str, ...]) -> None:
    check_range(len(tolerates), 0, limits.TOLERATIONS_MAX, "tolerates")
    for each in tolerates:
        name, _, value = each.partition("=")
        if name != "*":
            check_name(name, "tolerates")
        if value:
            check_name(value, "tolerates")


def check_waiting(request: LeaseRequest) -> None:
    """Mode, priority and waiting of a request for a lease.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if request.mode not in MODES:
        raise InvalidInputError(f"{request.mode[:40]!r} is none of {', '.join(filter(None, MODES))}", field="mode")
    if request.mode and (request.domain or request.driver or request.unmanaged or request.force):
        raise InvalidInputError("what is shared, or only looked at, is handed over to no domain", field="mode")
    if request.wait_ms:
        check_range(request.wait_ms, limits.WAIT_MS_MIN, limits.WAIT_MS_MAX, "wait_ms")
        size = len(msgspec.json.encode(request))
        if size > limits.QUEUED_BYTES_MAX:
            most = limits.QUEUED_BYTES_MAX
            raise InvalidInputError(f"what waits has at most {most} bytes, not {size}: name classes", field="wait_ms")
    check_range(request.priority, -limits.PRIORITY_MAX, limits.PRIORITY_MAX, "priority")


def check_schedule_request(request: ScheduleRequest) -> None:
    """The bounds of a request's fields.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    for field in ("reason", "device"):
        text = getattr(request, field, "")
        if text:
            chars_max = limits.REASON_CHARS_MAX if field == "reason" else limits.DEVICE_TEXT_CHARS_MAX
            check_text(text, field, chars_max)
    if getattr(request, "host", ""):
        identities.parse_host(getattr(request, "host", ""))
    match request:
        case schedule_inputs.WithdrawRequest():
            check_range(request.queued, 1, 2**53 - 1, "queued")
        case schedule_inputs.RenewManyRequest():
            check_range(len(request.leases), 1, limits.RENEWALS_PER_REQUEST_MAX, "leases")
            for lease, token in request.leases:
                _check_lease_and_token(lease, token, "leases")
        case schedule_inputs.TransferRequest():
            _check_lease_and_token(request.lease, request.token)
            identities.parse_holder(request.holder)
            if request.principal:
                identities.parse_principal(request.principal)
        case schedule_inputs.ReserveRequest():
            _check_reserve(request)
        case schedule_inputs.SwitchRequest():
            _check_lease_and_token(request.lease, request.token)
        case schedule_inputs.SetClassRequest():
            check_name(request.name, "name")
            check_selector_text(request.select, "select")
        case schedule_inputs.RemoveClassRequest():
            check_name(request.name, "name")
        case schedule_inputs.SetQuotaRequest():
            identities.parse_principal(request.tenant)
            check_range(request.devices_max, -1, 2**31 - 1, "devices_max")
            if request.device_class:
                check_name(request.device_class, "device_class")
        case _:
            _check_operators_word(request)


def check_stub(driver: str) -> None:
    """Whether it is a stub driver in the kernel's spelling, or empty.

    Raises:
        InvalidInputError: with what would be right.
    """
    if driver and parse_stub(driver) != driver:
        raise InvalidInputError(f"{driver[:40]!r} is called {parse_stub(driver)} by the kernel", field="driver")


def _check_reserve(request: ReserveRequest) -> None:
    _check_lease_and_token(request.lease, request.token)
    check_range(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")
    check_stub(request.driver)
    check_wanted(request)


def _check_operators_word(
    request: schedule_inputs.CordonRequest
    | schedule_inputs.UncordonRequest
    | schedule_inputs.TaintRequest
    | schedule_inputs.UntaintRequest
    | schedule_inputs.SetPolicyRequest
    | schedule_inputs.ConfirmCleanRequest
    | schedule_inputs.HealRequest,
) -> None:
    if not request.host and not request.device:
        raise InvalidInputError("name a host or a device", field="host")
    if isinstance(getattr(request, "reason", None), str) and not getattr(request, "reason", ""):
        raise InvalidInputError("say why: it is kept", field="reason")
    match request:
        case schedule_inputs.TaintRequest():
            check_name(request.name, "name")
            if request.value:
                check_name(request.value, "value")
            if request.effect not in EFFECTS:
                raise InvalidInputError(f"{request.effect[:40]!r} is none of {', '.join(EFFECTS)}", field="effect")
            check_range(request.notice_ms, 0, limits.NOTICE_MS_MAX if request.effect == "evict" else 0, "notice_ms")
        case schedule_inputs.UntaintRequest():
            check_name(request.name, "name")
        case schedule_inputs.SetPolicyRequest():
            check_range(request.share_max, 1, limits.SHARERS_MAX, "share_max")
            if request.clean and request.share_max > 1:
                raise InvalidInputError("who shares a device comes and goes: nobody could clean it", field="clean")
            if not request.device:
                raise InvalidInputError("name a device", field="device")
        case schedule_inputs.ConfirmCleanRequest() | schedule_inputs.HealRequest():
            if not request.device:
                raise InvalidInputError("name a device", field="device")


def _check_lease_and_token(lease: int, token: int, field: str = "") -> None:
    check_range(lease, 1, 2**53 - 1, field or "lease")
    check_range(token, 1, 2**53 - 1, field or "token")


def check_name(name: str, field: str) -> None:
    """Whether it can be the name of a class, a need or a taint.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:80]!r} is no name: 1 to 63 letters, digits, dots, dashes, underscores and slashes, like gpu.large",
            field=field,
        )
