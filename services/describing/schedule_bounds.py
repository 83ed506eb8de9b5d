"""The bounds of requests about scheduling, for their schemas: what the door checks beside the types, as far as a schema
can say it. That needs are called by different names, and selectors are such, only the door says.
"""

from typing import Any, Final

from leasehold.events import hostdevs, identities, limits, schedule_inputs, scheduling
from leasehold.events.inputs import LeaseRequest

Schema = dict[str, Any]

_NAME: Final = "[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_ATTRIBUTE: Final = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*|\[\"[^\"\\]{1,128}\"\]){0,7}"
_POSITION: Final = {"minimum": 1, "maximum": 2**53 - 1}
_TIME: Final = {"minimum": 0, "maximum": 2**63 - 1}
_TTL: Final = {"minimum": limits.LEASE_TTL_MS_MIN, "maximum": limits.LEASE_TTL_MS_MAX}
_HOST_OR_NONE: Final = {"pattern": f"^(?:|{identities.NAME_PATTERNS[identities.HostName]})$"}
_DEVICE_OR_NONE: Final = {"maxLength": limits.DEVICE_TEXT_CHARS_MAX}
_DEVICE: Final = {"minLength": 1, **_DEVICE_OR_NONE}
_REASON: Final = {"minLength": 1, "maxLength": limits.REASON_CHARS_MAX}
_REASON_OR_NONE: Final = {"maxLength": limits.REASON_CHARS_MAX}
_NAMED: Final = {"pattern": f"^(?:{_NAME})$"}
_NAMED_OR_NONE: Final = {"pattern": f"^(?:|{_NAME})$"}
_TOLERATES: Final = {
    "maxItems": limits.TOLERATIONS_MAX,
    "items": {"pattern": rf"^(?:\*|{_NAME})(?:=(?:{_NAME})?)?$"},
}
_OPTION: Final[dict[str, Schema]] = {
    "select": {"maxLength": limits.SELECTOR_BYTES_MAX},
    "device_class": _NAMED_OR_NONE,
    "count": {"minimum": 1, "maximum": limits.DEVICES_PER_LEASE_MAX},
}
_WANTED: Final[dict[str, Schema]] = {
    "devices": {"maxItems": limits.DEVICES_PER_LEASE_MAX, "items": _DEVICE},
    "needs": {"maxItems": limits.NEEDS_PER_REQUEST_MAX},
    "constraints": {"maxItems": limits.CONSTRAINTS_PER_REQUEST_MAX},
    "tolerates": _TOLERATES,
}
_OF_LEASE: Final[dict[str, Schema]] = {"issued_at_ns": _TIME, "lease": _POSITION, "token": _POSITION}
_OF_TARGET: Final[dict[str, Schema]] = {"issued_at_ns": _TIME, "host": _HOST_OR_NONE, "device": _DEVICE_OR_NONE}
_OF_DEVICE: Final[dict[str, Schema]] = {"issued_at_ns": _TIME, "host": _HOST_OR_NONE, "device": _DEVICE}
BOUNDS: Final[dict[type, dict[str, Schema]]] = {
    LeaseRequest: {
        **_WANTED,
        "mode": {"enum": list(scheduling.MODES)},
        "wait_ms": {"anyOf": [{"const": 0}, {"minimum": limits.WAIT_MS_MIN, "maximum": limits.WAIT_MS_MAX}]},
        "priority": {"minimum": -limits.PRIORITY_MAX, "maximum": limits.PRIORITY_MAX},
    },
    schedule_inputs.WithdrawRequest: {"issued_at_ns": _TIME, "queued": _POSITION, "reason": _REASON_OR_NONE},
    schedule_inputs.RenewManyRequest: {
        "issued_at_ns": _TIME,
        "leases": {
            "minItems": 1,
            "maxItems": limits.RENEWALS_PER_REQUEST_MAX,
            "items": {"prefixItems": [{"type": "integer", **_POSITION}] * 2},
        },
    },
    schedule_inputs.TransferRequest: {
        **_OF_LEASE,
        "principal": {"pattern": f"^(?:|{identities.NAME_PATTERNS[identities.Principal]})$"},
    },
    schedule_inputs.ReserveRequest: {
        **_OF_LEASE,
        **_WANTED,
        "ttl_ms": _TTL,
        "host": _HOST_OR_NONE,
        "driver": {"enum": ["", *hostdevs.STUBS]},
    },
    schedule_inputs.SwitchRequest: _OF_LEASE,
    schedule_inputs.SetClassRequest: {
        "issued_at_ns": _TIME,
        "name": _NAMED,
        "select": {"minLength": 1, "maxLength": limits.SELECTOR_BYTES_MAX},
    },
    schedule_inputs.RemoveClassRequest: {"issued_at_ns": _TIME, "name": _NAMED},
    schedule_inputs.SetQuotaRequest: {
        "issued_at_ns": _TIME,
        "devices_max": {"minimum": -1, "maximum": 2**31 - 1},
        "device_class": _NAMED_OR_NONE,
    },
    schedule_inputs.CordonRequest: {**_OF_TARGET, "reason": _REASON},
    schedule_inputs.UncordonRequest: _OF_TARGET,
    schedule_inputs.TaintRequest: {
        **_OF_TARGET,
        "reason": _REASON,
        "name": _NAMED,
        "value": _NAMED_OR_NONE,
        "effect": {"enum": list(scheduling.EFFECTS)},
        "notice_ms": {"minimum": 0, "maximum": limits.NOTICE_MS_MAX},
    },
    schedule_inputs.UntaintRequest: {**_OF_TARGET, "name": _NAMED},
    schedule_inputs.SetPolicyRequest: {**_OF_DEVICE, "share_max": {"minimum": 1, "maximum": limits.SHARERS_MAX}},
    schedule_inputs.ConfirmCleanRequest: {**_OF_DEVICE, "reason": _REASON},
    schedule_inputs.HealRequest: {**_OF_DEVICE, "reason": _REASON},
    scheduling.Option: _OPTION,
    scheduling.Need: {**_OPTION, "name": _NAMED_OR_NONE, "first_of": {"maxItems": limits.OPTIONS_PER_NEED_MAX}},
    scheduling.Constraint: {
        "kind": {"enum": list(scheduling.CONSTRAINTS)},
        "attribute": {"pattern": f"^(?:{_ATTRIBUTE})$", "maxLength": limits.KEY_CHARS_MAX},
    },
}
"""By type and field."""


def _some(field: str, least: Schema) -> Schema:
    """Something is said in this field."""
    return {"properties": {field: least}, "required": [field]}


def _both(*parts: Schema) -> Schema:
    properties = {name: least for part in parts for name, least in part["properties"].items()}
    return {"properties": properties, "required": sorted(properties)}


_LISTED: Final = {"minItems": 1}
_TEXT: Final = {"minLength": 1}
_DEVICES: Final = _some("devices", _LISTED)
_ANY_NEEDS: Final = _some("needs", _LISTED)
_WANTED_RULES: Final[list[Schema]] = [
    {"anyOf": [_DEVICES, _ANY_NEEDS]},
    {"not": _both(_DEVICES, _ANY_NEEDS)},
    {"not": _both(_some("constraints", _LISTED), _DEVICES)},
]
_MODE: Final = _some("mode", {"enum": [mode for mode in scheduling.MODES if mode]})
_IS_TRUE: Final = {"const": True}
_TARGET_RULE: Final[Schema] = {"anyOf": [_some("host", _TEXT), _some("device", _TEXT)]}
_SAID_ALONE: Final = (
    _some("select", _TEXT),
    _some("device_class", _TEXT),
    _some("count", {"minimum": 2}),
    _some("every", _IS_TRUE),
)
_OPTION_RULE: Final[Schema] = {"anyOf": [_some("select", _TEXT), _some("device_class", _TEXT)]}
RULES: Final[dict[type, list[Schema]]] = {
    LeaseRequest: [
        *_WANTED_RULES,
        {"not": _both(_MODE, _some("domain", _TEXT))},
        {"not": _both(_MODE, _some("driver", _TEXT))},
        {"not": _both(_MODE, _some("unmanaged", _IS_TRUE))},
        {"not": _both(_MODE, _some("force", _IS_TRUE))},
    ],
    schedule_inputs.ReserveRequest: _WANTED_RULES,
    schedule_inputs.CordonRequest: [_TARGET_RULE],
    schedule_inputs.UncordonRequest: [_TARGET_RULE],
    schedule_inputs.TaintRequest: [
        _TARGET_RULE,
        {"anyOf": [_some("effect", {"const": "evict"}), {"properties": {"notice_ms": {"const": 0}}}]},
    ],
    schedule_inputs.UntaintRequest: [_TARGET_RULE],
    schedule_inputs.SetPolicyRequest: [{"not": _both(_some("clean", _IS_TRUE), _some("share_max", {"minimum": 2}))}],
    scheduling.Option: [_OPTION_RULE],
    scheduling.Need: [
        {"anyOf": [*_OPTION_RULE["anyOf"], _some("first_of", _LISTED)]},
        *({"not": _both(said, _some("first_of", _LISTED))} for said in _SAID_ALONE),
    ],
}
"""By type: what the door checks of several fields together, all of it."""
