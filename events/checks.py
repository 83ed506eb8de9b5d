"""The bounds of what comes in: each field of a request and of an agent's message. What is not so is refused by name."""

import re

import msgspec

from leasehold.events import capabilities, identities, inputs, limits, schedule_checks
from leasehold.events.bounds import check_range, check_text
from leasehold.events.devices import SOURCES, WHYS, Sighting
from leasehold.events.domains import STATES, USES, DomainDescription, parse_device_word
from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import BUSES, OPERATIONS, RESETS
from leasehold.events.inputs import Observed, Request

# --- agents' messages ---------------------------------------------------------------------------------------------


def check_observed(observed: Observed) -> None:
    """The bounds of a message of an agent.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    identities.parse_host(observed.host)
    _check_agent(observed.agent)
    check_range(observed.run, 1, 2**63 - 1, "run")
    check_range(observed.counter, 0, 2**53 - 1, "counter")
    check_range(len(observed.observations), 1, limits.OBSERVATIONS_PER_MESSAGE_MAX, "observations")
    starts = any(isinstance(each, inputs.SourceStarts) for each in observed.observations)
    if starts != (observed.counter == 0) or (starts and len(observed.observations) != 1):
        raise InvalidInputError("a run's first message (counter 0) is source_starts, alone", field="observations")
    for each in observed.observations:
        _check_observation(each)
        if isinstance(each, inputs.WORDS_OF_DOMAINS) and observed.agent != inputs.POLLER:
            raise InvalidInputError(f"only the agent {inputs.POLLER} tells of domains", field="agent")
        if isinstance(each, inputs.WORDS_OF_BINDERS) and observed.agent != inputs.BINDER:
            raise InvalidInputError(f"only the agent {inputs.BINDER} hands over and takes back", field="agent")
        if isinstance(each, inputs.SourceStarts) and each.manages != (observed.agent == inputs.BINDER):
            raise InvalidInputError(f"the agent {inputs.BINDER} manages a host, and no other does", field="manages")


def _check_agent(agent: str) -> None:
    if not re.fullmatch(identities.AGENT_PATTERN, agent):
        raise InvalidInputError(f"{agent[:80]!r} is not an agent's name, like watcher", field="agent")


def _check_observation(given: inputs.Observation) -> None:
    match given:
        case inputs.DeviceSeen():
            check_description(given)
        case inputs.DeviceGone() | inputs.DeviceFlaps():
            _check_key(given.key, "key")
        case inputs.MissedEvents():
            check_range(given.times, 1, 2**31 - 1, "times")
        case inputs.OrderDone() | inputs.OrderNotDone():
            check_range(given.order, 1, 2**53 - 1, "order")
        case inputs.DomainSeen():
            _check_domain(given.domain)
        case inputs.DomainGone():
            _check_domain_key(given.key, "key")
        case inputs.DeviceUsed() | inputs.DeviceUnused():
            _check_domain_key(given.domain, "domain")
            if parse_device_word(given.device) != given.device:
                raise InvalidInputError(f"{given.device!r} is not in its one spelling (lower case)", field="device")
            if given.use not in USES:
                raise InvalidInputError(f"{given.use[:80]!r} is none of {', '.join(USES)}", field="use")
        case inputs.SourceBlind():
            check_text(given.reason, "reason", limits.REASON_CHARS_MAX)
        case inputs.Prepared() | inputs.NotPrepared() | inputs.GivenBack() | inputs.Stuck() | inputs.LetGo():
            _check_word_of_binder(given)
    match given:
        case inputs.DeviceSeen(how=Sighting()) | inputs.DeviceGone(how=Sighting()) | inputs.DeviceFlaps():
            _check_sighting(given.how)
        case inputs.OrderDone() if given.device:
            _check_key(given.device, "device")
        case inputs.OrderNotDone():
            check_text(given.reason, "reason", limits.REASON_CHARS_MAX)


def _check_word_of_binder(given: inputs.WordOfBinder) -> None:
    if not isinstance(given, inputs.LetGo):
        _check_key(given.key, "key")
    least = 0 if isinstance(given, inputs.GivenBack | inputs.Stuck) else 1
    check_range(given.lease, least, 2**53 - 1, "lease")
    match given:
        case inputs.Prepared():
            _check_driver(given.driver, "driver")
            _check_driver(given.was_driver, "was_driver")
            if given.reset and given.reset not in RESETS:
                raise InvalidInputError(f"{given.reset[:80]!r} is none of {', '.join(RESETS)}", field="reset")
        case inputs.GivenBack():
            _check_driver(given.driver, "driver")
        case inputs.NotPrepared():
            check_text(given.reason, "reason", limits.REASON_CHARS_MAX)
        case inputs.Stuck():
            check_text(given.reason, "reason", limits.REASON_CHARS_MAX)
            check_text(given.help, "help", limits.REASON_CHARS_MAX)


def _check_driver(driver: str, field: str) -> None:
    if driver:
        check_text(driver, field, limits.NAME_CHARS_MAX)


def _check_domain(domain: DomainDescription) -> None:
    _check_domain_key(domain.key, "domain.key")
    if domain.state not in STATES:
        raise InvalidInputError(f"{domain.state[:80]!r} is none of {', '.join(STATES)}", field="domain.state")
    check_range(len(domain.name), 0, limits.DOMAIN_NAME_CHARS_MAX, "domain.name")
    check_range(len(domain.kind), 0, limits.DOMAIN_KIND_CHARS_MAX, "domain.kind")
    check_range(domain.domid, -1, 2**32 - 1, "domain.domid")
    check_range(domain.vcpus, 0, 2**31 - 1, "domain.vcpus")
    for field in ("memory_bytes", "max_memory_bytes"):
        check_range(getattr(domain, field), 0, 2**63 - 1, f"domain.{field}")


def _check_domain_key(key: str, field: str) -> None:
    try:
        spelled = identities.parse_domain_key(key)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field) from None
    if spelled != key:
        raise InvalidInputError(f"{key!r} is not in its one spelling (lower case, dashes)", field=field)


def _check_sighting(how: Sighting | None) -> None:
    assert how is not None
    for field, known in (("why", WHYS), ("source", ("", *SOURCES))):
        if getattr(how, field) not in known:
            said = repr(getattr(how, field))[:80]
            raise InvalidInputError(f"{said} is none of {', '.join(known)}", field=f"how.{field}")
    check_range(len(how.actions), 0, limits.ACTIONS_TOLD_MAX, "how.actions")
    for action in how.actions:
        check_text(action, "how.actions", limits.NAME_CHARS_MAX)
    check_range(how.flaps, 0, 2**31 - 1, "how.flaps")
    check_range(how.heard_at_ns, 0, 2**63 - 1, "how.heard_at_ns")


def _check_key(key: str, field: str) -> None:
    if identities.parse_device_key(key) != key:
        raise InvalidInputError(f"{key!r} is not in its one spelling (lower case)", field=field)


def check_description(seen: inputs.DeviceSeen) -> None:
    """The bounds of a description."""
    device = seen.device
    _check_key(device.key, "device.key")
    for field in ("parent", "physical_function"):
        if getattr(device, field):
            _check_key(getattr(device, field), f"device.{field}")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", device.name):
        raise InvalidInputError(f"{device.name[:80]!r} is not a node-device name", field="device.name")
    for field in ("pci_class", "iommu_group", "numa_node"):
        check_range(getattr(device, field), -1, 2**32 - 1, f"device.{field}")
    check_range(len(device.attributes), 0, limits.ATTRIBUTES_PER_DEVICE_MAX, "device.attributes")
    check_range(len(device.devnodes), 0, limits.DEVNODES_PER_DEVICE_MAX, "device.devnodes")
    check_range(len(device.protections), 0, limits.REASONS_PER_DEVICE_MAX, "device.protections")
    check_range(len(device.in_use_by), 0, limits.REASONS_PER_DEVICE_MAX, "device.in_use_by")
    check_range(len(msgspec.json.encode(device)), 0, limits.DESCRIPTION_BYTES_MAX, "device")


# --- requests -----------------------------------------------------------------------------------------------------


def check_request(request: Request) -> None:
    """The bounds of a request's fields.

    Raises:
        InvalidInputError: with the field and what would be right.
    """
    identities.parse_request_id(request.request_id)
    check_range(request.issued_at_ns, 0, 2**63 - 1, "issued_at_ns")
    if isinstance(request, inputs.LeaseRequest):
        _check_lease(request)
    elif isinstance(request, inputs.ReleaseRequest | inputs.RenewRequest):
        check_range(request.lease, 1, 2**53 - 1, "lease")
        check_range(request.token, 1, 2**53 - 1, "token")
        if isinstance(request, inputs.RenewRequest) and request.ttl_ms:
            check_range(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")
    elif isinstance(request, inputs.ConfirmFreeRequest):
        check_text(request.device, "device", limits.DEVICE_TEXT_CHARS_MAX)
        check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
        if request.host:
            identities.parse_host(request.host)
    elif isinstance(request, inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest):
        _check_order(request)
    elif isinstance(request, inputs.RetireAgentRequest):
        identities.parse_host(request.host)
        _check_agent(request.agent)
        check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
    elif isinstance(request, inputs.PrepareRequest | inputs.ReattachRequest):
        _check_of_domain(request)
    elif isinstance(request, inputs.OperateDeviceRequest):
        _check_operation(request)
    elif isinstance(request, inputs.RevokeRequest):
        check_range(request.lease, 1, 2**53 - 1, "lease")
        check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
    elif isinstance(request, inputs.DeclareDeadRequest):
        identities.parse_host(request.host)
        check_text(request.reason, "reason", limits.REASON_CHARS_MAX)
    else:
        schedule_checks.check_schedule_request(request)


def _check_lease(request: inputs.LeaseRequest) -> None:
    _check_terms(request)
    schedule_checks.check_wanted(request)
    schedule_checks.check_waiting(request)
    if request.domain:
        if identities.parse_uuid(request.domain, "domain") != request.domain:
            raise InvalidInputError(
                f"{request.domain!r} is not in its one spelling (lower case, dashes)", field="domain"
            )
    elif request.gone_ms != inputs.GONE_MS or request.keep:
        field = "keep" if request.keep else "gone_ms"
        raise InvalidInputError("it is about the domain that a lease is for, and none is named", field=field)


def _check_terms(request: inputs.LeaseRequest | inputs.PrepareRequest) -> None:
    """What all that leads to a lease says of it."""
    identities.parse_holder(request.holder)
    check_range(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")
    check_range(request.gone_ms, 0, limits.GONE_MS_MAX, "gone_ms")
    if request.host:
        identities.parse_host(request.host)
    schedule_checks.check_stub(request.driver)
    if request.driver and request.unmanaged:
        raise InvalidInputError("an unmanaged device stays bound as it is", field="driver")


def _check_of_domain(request: inputs.PrepareRequest | inputs.ReattachRequest) -> None:
    check_text(request.domain, "domain", limits.DOMAIN_NAME_CHARS_MAX)
    if request.bus and request.bus not in BUSES:
        raise InvalidInputError(f"{request.bus[:40]!r} is none of {', '.join(BUSES)}", field="bus")
    if isinstance(request, inputs.PrepareRequest):
        _check_terms(request)
    elif request.host:
        identities.parse_host(request.host)


def _check_operation(request: inputs.OperateDeviceRequest) -> None:
    check_text(request.device, "device", limits.DEVICE_TEXT_CHARS_MAX)
    if request.host:
        identities.parse_host(request.host)
    if request.operation not in OPERATIONS:
        raise InvalidInputError(f"{request.operation[:40]!r} is none of {', '.join(OPERATIONS)}", field="operation")
    schedule_checks.check_stub(request.driver)
    if request.driver and request.operation != "detach":
        raise InvalidInputError("only what is detached is bound to a stub", field="driver")
    check_range(request.timeout_ms, limits.ORDER_TIMEOUT_MS_MIN, limits.ORDER_TIMEOUT_MS_MAX, "timeout_ms")


def _check_order(request: inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest) -> None:
    if request.host:
        identities.parse_host(request.host)
    check_range(request.timeout_ms, limits.ORDER_TIMEOUT_MS_MIN, limits.ORDER_TIMEOUT_MS_MAX, "timeout_ms")
    if isinstance(request, inputs.DestroyDeviceRequest):
        check_text(request.device, "device", limits.DEVICE_TEXT_CHARS_MAX)
    elif isinstance(request.device, capabilities.NewMdev):
        _check_new_mdev(request.device)
    elif isinstance(request.device, capabilities.NewVirtualFunctions):
        check_text(request.device.parent, "device.parent", limits.DEVICE_TEXT_CHARS_MAX)
        check_range(request.device.count, 0, limits.VIRTUAL_FUNCTIONS_MAX, "device.count")
    else:
        _check_new_vport(request.device, request.host)


def _check_new_mdev(device: capabilities.NewMdev) -> None:
    check_text(device.parent, "device.parent", limits.DEVICE_TEXT_CHARS_MAX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", device.mdev_type):
        raise InvalidInputError(
            f"{device.mdev_type[:80]!r} is not a type of mediated device; one looks like i915-GVTg_V5_4",
            field="device.mdev_type",
        )
    if device.uuid and not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", device.uuid):
        raise InvalidInputError(
            f"{device.uuid[:80]!r} is not a UUID in lower case, like c2177883-f1bb-47f0-914d-32a22e3a8804",
            field="device.uuid",
        )


def _check_new_vport(device: capabilities.NewVport, host: str) -> None:
    if device.parent:
        check_text(device.parent, "device.parent", limits.DEVICE_TEXT_CHARS_MAX)
    elif not (host or device.parent_wwnn or device.parent_wwpn):
        raise InvalidInputError("say on which host, or on which parent", field="host")
    for field in ("parent_wwnn", "parent_wwpn", "parent_fabric_wwn", "wwnn", "wwpn"):
        if getattr(device, field):
            identities.parse_wwn(getattr(device, field), f"device.{field}")
