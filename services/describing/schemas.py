"""JSON Schemas (2020-12) of the messages, made from their types.

    schemas()["lease_granted.v2"]  # the schema, as a dict

A schema says what msgspec reads, and besides it the bounds that the door checks where a schema can say them, and what
the sources say about each field. It stands alone: what it needs is in its `$defs`.
"""

import ast
import copy
import functools
import inspect
import sys
import typing
from collections.abc import Iterable
from typing import Any, Final, get_args, get_origin

import msgspec

from leasehold.events import capabilities, hostdevs, identities, inputs, limits
from leasehold.events.cloudevents import SCHEMA_PREFIX
from leasehold.events.inputs import Observed, Request
from leasehold.events.questions import Question, Sync
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.services.describing import schedule_bounds
from leasehold.services.describing.messages import Way, messages

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
POSITION_MAX: Final = 2**53 - 1
INT64_MAX: Final = 2**63 - 1

Schema = dict[str, Any]

_DEFS: Final = "#/$defs/{name}"
_HOST: Final = identities.NAME_PATTERNS[identities.HostName]
_POSITION: Final = {"minimum": 1, "maximum": POSITION_MAX}
_TIME: Final = {"minimum": 0, "maximum": INT64_MAX}
_TTL: Final = {"minimum": limits.LEASE_TTL_MS_MIN, "maximum": limits.LEASE_TTL_MS_MAX}
_HOST_OR_NONE: Final = {"pattern": f"^(?:|{_HOST})$"}
_DEVICE: Final = {"minLength": 1, "maxLength": limits.DEVICE_TEXT_CHARS_MAX}
_TIMEOUT: Final = {"minimum": limits.ORDER_TIMEOUT_MS_MIN, "maximum": limits.ORDER_TIMEOUT_MS_MAX}
_HEX2: Final = "[0-9A-Fa-f]{2}"
_WWN_OR_NONE: Final = {
    "pattern": f"^(?:|(?:0[xX])?(?:(?:{_HEX2}){{8}}|{_HEX2}(?::{_HEX2}){{7}}|{_HEX2}(?:-{_HEX2}){{7}}))$"
}
_MDEV_TYPE: Final = {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
_UUID_OR_NONE: Final = {"pattern": "^(?:|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$"}
_REASON: Final = {"minLength": 1, "maxLength": limits.REASON_CHARS_MAX}
_DOMAIN: Final = {"minLength": 1, "maxLength": limits.DOMAIN_NAME_CHARS_MAX}
_STUB_OR_NONE: Final = {"enum": ["", *hostdevs.STUBS]}
_BUS_OR_NONE: Final = {"enum": ["", *hostdevs.BUSES]}
_TERMS: Final[dict[str, Schema]] = {
    "ttl_ms": _TTL,
    "host": _HOST_OR_NONE,
    "gone_ms": {"minimum": 0, "maximum": limits.GONE_MS_MAX},
    "driver": _STUB_OR_NONE,
}
_BOUNDS: Final[dict[type, dict[str, Schema]]] = {
    **schedule_bounds.BOUNDS,
    inputs.LeaseRequest: {
        "issued_at_ns": _TIME,
        "domain": _UUID_OR_NONE,
        **_TERMS,
        **schedule_bounds.BOUNDS[inputs.LeaseRequest],
    },
    inputs.PrepareRequest: {"issued_at_ns": _TIME, "domain": _DOMAIN, "bus": _BUS_OR_NONE, **_TERMS},
    inputs.ReattachRequest: {"issued_at_ns": _TIME, "domain": _DOMAIN, "host": _HOST_OR_NONE, "bus": _BUS_OR_NONE},
    inputs.OperateDeviceRequest: {
        "issued_at_ns": _TIME,
        "device": _DEVICE,
        "operation": {"enum": list(hostdevs.OPERATIONS)},
        "host": _HOST_OR_NONE,
        "driver": _STUB_OR_NONE,
        "timeout_ms": _TIMEOUT,
    },
    inputs.RevokeRequest: {"issued_at_ns": _TIME, "lease": _POSITION, "reason": _REASON},
    inputs.DeclareDeadRequest: {"issued_at_ns": _TIME, "host": {"pattern": f"^(?:{_HOST})$"}, "reason": _REASON},
    inputs.RenewRequest: {
        "issued_at_ns": _TIME,
        "lease": _POSITION,
        "token": _POSITION,
        "ttl_ms": {"anyOf": [{"const": 0}, _TTL]},
    },
    inputs.ReleaseRequest: {"issued_at_ns": _TIME, "lease": _POSITION, "token": _POSITION},
    inputs.ConfirmFreeRequest: {
        "issued_at_ns": _TIME,
        "device": _DEVICE,
        "reason": _REASON,
        "host": _HOST_OR_NONE,
    },
    inputs.CreateDeviceRequest: {"issued_at_ns": _TIME, "host": _HOST_OR_NONE, "timeout_ms": _TIMEOUT},
    inputs.DestroyDeviceRequest: {
        "issued_at_ns": _TIME,
        "device": _DEVICE,
        "host": _HOST_OR_NONE,
        "timeout_ms": _TIMEOUT,
    },
    inputs.RetireAgentRequest: {
        "issued_at_ns": _TIME,
        "host": {"pattern": f"^(?:{_HOST})$"},
        "agent": {"pattern": f"^(?:{identities.AGENT_PATTERN})$"},
        "reason": _REASON,
    },
    capabilities.NewVport: {
        "parent": {"maxLength": limits.DEVICE_TEXT_CHARS_MAX},
        **dict.fromkeys(("parent_wwnn", "parent_wwpn", "parent_fabric_wwn", "wwnn", "wwpn"), _WWN_OR_NONE),
    },
    capabilities.NewMdev: {"parent": _DEVICE, "mdev_type": _MDEV_TYPE, "uuid": _UUID_OR_NONE},
    capabilities.NewVirtualFunctions: {
        "parent": _DEVICE,
        "count": {"minimum": 0, "maximum": limits.VIRTUAL_FUNCTIONS_MAX},
    },
    Observed: {
        "run": {"minimum": 1, "maximum": INT64_MAX},
        "counter": {"minimum": 0, "maximum": POSITION_MAX},
        "observations": {"minItems": 1, "maxItems": limits.OBSERVATIONS_PER_MESSAGE_MAX},
    },
    Question: {
        "min_position": {"minimum": 0, "maximum": POSITION_MAX},
        "limit": {"minimum": 1, "maximum": limits.LIST_ROWS_MAX},
    },
    Sync: {"host": {"pattern": f"^(?:{_HOST})$"}},
}
"""By type and field: what the door checks beside the type."""
_IS_STUB_OF_UNMANAGED: Final = {
    "properties": {"driver": {"minLength": 1}, "unmanaged": {"const": True}},
    "required": ["driver", "unmanaged"],
}
_RULES: Final[dict[type, Schema]] = {
    **{kind: {"allOf": rules} for kind, rules in schedule_bounds.RULES.items()},
    inputs.LeaseRequest: {
        "anyOf": [
            {"properties": {"domain": {"minLength": 1}}, "required": ["domain"]},
            {"properties": {"gone_ms": {"const": inputs.GONE_MS}, "keep": {"const": False}}},
        ],
        "not": _IS_STUB_OF_UNMANAGED,
        "allOf": schedule_bounds.RULES[inputs.LeaseRequest],
    },
    inputs.PrepareRequest: {"not": _IS_STUB_OF_UNMANAGED},
    inputs.OperateDeviceRequest: {
        "anyOf": [{"properties": {"operation": {"const": "detach"}}}, {"properties": {"driver": {"const": ""}}}]
    },
}
"""By type: what the door checks of several fields together."""


_STRICT: Final = frozenset((*get_args(Request), Need, Option, Constraint))
"""What the door reads without a field that it does not know."""


def schemas() -> dict[str, Schema]:
    """The schemas of all messages, by the messages' names."""
    return {name: _alone(name, message.kind, message.way) for name, message in messages().items()}


def _alone(name: str, kind: Any, way: Way) -> Schema:
    components = described([kind], _DEFS, way)
    own = components.pop(kind.__name__)
    return {"$schema": DIALECT, "$id": f"{SCHEMA_PREFIX}{name}", **own, **({"$defs": components} if components else {})}


def described(kinds: Iterable[Any], ref_template: str, way: Way = Way.ASKED) -> dict[str, Schema]:
    """The schemas of these types and of all that they are made of, by name; they refer to each other as told.

    What an event repeats of a request is not bounded there: bounds of requests may be widened, what is told may not.
    """
    _, components = msgspec.json.schema_components(kinds, ref_template=ref_template)
    found = {each.__name__: each for each in _structs(kinds)}
    for name, schema in components.items():
        _tidied(schema)
        if name in found:
            _complete(schema, found[name], is_asked=way == Way.ASKED or found[name] not in _STRICT)
    return dict(sorted(components.items()))


def _tidied(schema: Any) -> None:
    """Texts without the sources' indents; one value is `const`; what parts a union is seen from its members."""
    if isinstance(schema, list):
        for each in schema:
            _tidied(each)
    if not isinstance(schema, dict):
        return
    if "anyOf" in schema:
        schema.pop("discriminator", None)
    values = schema.get("enum")
    if isinstance(values, list):
        schema["type"] = "string"
        if len(values) == 1:
            schema["const"] = values[0]
            del schema["enum"]
    if isinstance(schema.get("description"), str):
        schema["description"] = inspect.cleandoc(schema["description"])
    if "default" in schema:
        schema["default"] = msgspec.json.decode(msgspec.json.encode(schema["default"]))
    for each in schema.values():
        _tidied(each)


def _complete(schema: Schema, struct: type[msgspec.Struct], *, is_asked: bool) -> None:
    """What the sources say about the fields, and their bounds."""
    if struct in _STRICT and is_asked:
        # The door takes no field that it does not know; the type itself tolerates them, for the log.
        schema["additionalProperties"] = False
    if is_asked:
        schema.update(copy.deepcopy(_RULES.get(struct, {})))
    hints = typing.get_type_hints(struct)
    texts = _texts_of(struct)
    properties: dict[str, Schema] = schema.get("properties", {})
    for name, field in properties.items():
        if name in texts:
            field["description"] = texts[name]
        if name.endswith("_ns"):
            field["format"] = "int64"
        _merge(field, _facets(hints.get(name)))
        for base in reversed(struct.__mro__) if is_asked else ():
            _merge(field, _BOUNDS.get(base, {}).get(name, {}))


def _facets(hint: Any) -> Schema:
    """What a type says that msgspec does not carry over: the shape of names."""
    if hint in identities.NAME_PATTERNS:
        return {"pattern": f"^(?:{identities.NAME_PATTERNS[hint]})$"}
    if get_origin(hint) in (tuple, list):
        items = _facets(get_args(hint)[0])
        return {"items": items} if items else {}
    return {}


def _merge(schema: Schema, more: Schema) -> None:
    for keyword, value in more.items():
        if keyword == "items":
            _merge(schema[keyword], value)
        else:
            schema[keyword] = value


def _structs(kinds: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """All structs that these types are made of, themselves among them."""
    found: set[type[msgspec.Struct]] = set()
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
            found.add(kind)
            waiting += typing.get_type_hints(kind).values()
    return found


def _texts_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The texts below the fields of a struct and of those that it extends."""
    texts: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if base.__module__.startswith("leasehold."):
            texts |= _texts_in(base.__module__).get(base.__name__, {})
    return texts


@functools.cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the text that stands below the field."""
    root = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: _texts_below(node) for node in root.body if isinstance(node, ast.ClassDef)}


def _texts_below(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(said))),
            ):
                texts[name] = inspect.cleandoc(said)
    return texts
