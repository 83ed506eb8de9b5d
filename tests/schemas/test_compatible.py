"""What was published stays valid, and each way to break it is noticed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from leasehold.services.describing.messages import Way
from leasehold.services.describing.schemas import schemas
from tests.schemas.compatible import bare, breaks
from tests.schemas.published import broken, published, unpublished

Schema = dict[str, Any]
Change = Callable[[Schema], object]


def test_nothing_published_is_broken() -> None:
    """Each message that was ever published still has a schema that breaks nobody who relies on an older one."""
    assert published(), "the published schemas were not found"
    assert broken(published(), schemas()) == []


def test_everything_is_published() -> None:
    """Each schema, as it is now, is among the published ones; else `make schemas` publishes it."""
    assert list(unpublished(published(), schemas())) == []


def _ref(schema: Schema) -> Schema:
    found: Schema = schema["$defs"]["RequestRef"]
    return found


BROKEN_EVENT: dict[str, Change] = {
    "field removed": lambda s: s["properties"].pop("holder"),
    "field renamed": lambda s: s["properties"].__setitem__("owner", s["properties"].pop("holder")),
    "field of another type": lambda s: s["properties"]["ttl_ms"].update(type="string"),
    "type widened": lambda s: s["properties"].update(ttl_ms={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    "new required field": lambda s: (s["properties"].update(x={"type": "string"}), s["required"].append("x")),
    "optional field required": lambda s: s["required"].append("forced"),
    "required field optional": lambda s: s["required"].remove("holder"),
    "default changed": lambda s: s["properties"]["forced"].update(default=True),
    "tag changed": lambda s: s["properties"]["type"].update(const="lease_granted.v9"),
    "items of another type": lambda s: s["properties"]["devices"]["items"].update(type="integer"),
    "list bounded": lambda s: s["properties"]["devices"].update(maxItems=1),
    "bound added": lambda s: s["properties"]["ttl_ms"].update(minimum=5),
    "pattern changed": lambda s: s["properties"]["holder"].update(pattern="^x$"),
    "pattern removed": lambda s: s["properties"]["holder"].pop("pattern"),
    "values fixed": lambda s: s["properties"]["holder"].update(enum=["a", "b"]),
    "inner field removed": lambda s: _ref(s)["properties"].pop("request_id"),
    "inner field required": lambda s: (
        _ref(s)["properties"].update(x={"type": "string"}), _ref(s)["required"].append("x"),
    ),
    "no other fields": lambda s: s.update(additionalProperties=False),
    "unknown keyword": lambda s: s.update(minProperties=3),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_EVENT)
def test_planted_breaks_of_an_event_are_found(what: str) -> None:
    """Each of these changes of an event is refused."""
    old = schemas()["lease_granted.v2"]
    new = copy.deepcopy(old)
    BROKEN_EVENT[what](new)
    assert breaks(old, new, Way.TOLD), what
    assert broken({"lease_granted.v2": [old]}, {"lease_granted.v2": new}), what


BROKEN_REQUEST: dict[str, Change] = {
    "field removed": lambda s: s["properties"].pop("force"),
    "bound lowered": lambda s: s["properties"]["ttl_ms"].update(maximum=5_000),
    "bound raised": lambda s: s["properties"]["ttl_ms"].update(minimum=5_000),
    "fewer items": lambda s: s["properties"]["devices"].update(maxItems=1),
    "shorter texts": lambda s: s["properties"]["devices"]["items"].update(maxLength=1),
    "new required field": lambda s: (s["properties"].update(x={"type": "string"}), s["required"].append("x")),
    "optional field required": lambda s: s["required"].append("host"),
    "default changed": lambda s: s["properties"]["force"].update(default=True),
    "pattern changed": lambda s: s["properties"]["holder"].update(pattern="^x$"),
}


@pytest.mark.parametrize("what", BROKEN_REQUEST)
def test_planted_breaks_of_a_request_are_found(what: str) -> None:
    """Each of these changes of a request is refused."""
    old = schemas()["lease.v1"]
    new = copy.deepcopy(old)
    BROKEN_REQUEST[what](new)
    assert breaks(old, new, Way.ASKED), what


def test_planted_breaks_of_values_and_alternatives_are_found() -> None:
    """A value that is none any more, and an alternative that is gone or new, are refused."""
    cases: tuple[tuple[str, Change, Way], ...] = (
        ("request_refused.v1", lambda s: s["$defs"]["RefusalCode"]["enum"].remove("not_yours"), Way.TOLD),
        ("device_freed.v1", lambda s: s["properties"]["request"]["anyOf"].pop(0), Way.TOLD),
        ("answer.v1", lambda s: s["properties"]["refusal"]["anyOf"].append({"type": "string"}), Way.TOLD),
        ("host_ordered.v1", lambda s: s["properties"]["order"]["anyOf"].pop(), Way.TOLD),
        ("host_ordered.v1", lambda s: s["properties"]["order"]["anyOf"].append({"type": "string"}), Way.TOLD),
        ("answer.v1", lambda s: s["properties"]["refusal"]["anyOf"].append(_tagged("refusal.v2")), Way.TOLD),
        ("lease.v1", lambda s: s.update({"not": {"required": ["host"]}}), Way.ASKED),
        ("release.v1", lambda s: s.update(allOf=[{"not": {"required": ["lease"]}}]), Way.ASKED),
        ("revoke.v1", lambda s: s.update(allOf=[{"anyOf": [{"required": ["force"]}]}]), Way.ASKED),
        ("revoke.v1", lambda s: s.update(allOf=[{"anyOf": [_with("lease", minimum=2)]}]), Way.ASKED),
        ("observed.v1", lambda s: s["properties"]["observations"]["items"]["anyOf"].pop(), Way.ASKED),
        ("observed.v1", lambda s: s["$defs"]["DeviceGone"]["properties"].pop("key"), Way.ASKED),
        ("device_appeared.v1", lambda s: s["$defs"]["DeviceDescription"]["properties"].pop("hub"), Way.TOLD),
    )
    for name, change, way in cases:
        old = schemas()[name]
        new = copy.deepcopy(old)
        change(new)
        assert new != old, name
        assert breaks(old, new, way), name


def test_a_type_that_is_gone_is_found() -> None:
    """A message that was published and has no schema any more is refused."""
    now = schemas()
    before = {"lease_granted.v1": [now.pop("lease_granted.v1")]}
    assert broken(before, now) == ["lease_granted.v1: it was published, and is gone"]


def _with(field: str, **asked: Any) -> Schema:
    """Something with a field that is like this."""
    return {"properties": {field: asked}, "required": [field]}


def _tagged(name: str) -> Schema:
    """Something that says which it is."""
    return {"type": "object", "properties": {"type": {"const": name}}, "required": ["type"]}


GROWN: dict[str, tuple[str, Way, Change]] = {
    "new optional field": ("lease_granted.v2", Way.TOLD, lambda s: s["properties"].update(x={"type": "string"})),
    "one more value": ("request_refused.v1", Way.TOLD, lambda s: s["$defs"]["RefusalCode"]["enum"].append("new")),
    "words": ("lease_granted.v2", Way.TOLD, lambda s: s.update(description="other words", title="Other")),
    "wider bound": ("lease.v1", Way.ASKED, lambda s: s["properties"]["ttl_ms"].update(maximum=2**50, minimum=1)),
    "fewer bounds": ("lease.v1", Way.ASKED, lambda s: s["properties"]["holder"].pop("pattern")),
    "less required": ("lease.v1", Way.ASKED, lambda s: s["required"].remove("ttl_ms")),
    "one more kind": (
        "host_ordered.v1", Way.TOLD, lambda s: s["properties"]["order"]["anyOf"].append(_tagged("polish"))
    ),
    "a rule of a new field": (
        "release.v1", Way.ASKED, lambda s: s.update({"not": {"required": ["lease", "colour"]}})
    ),
    "a default of what had to be said": (
        "release.v1", Way.ASKED, lambda s: (s["properties"]["lease"].update(default=0), s["required"].remove("lease"))
    ),
    "a rule that was kept before": (
        "release.v1", Way.ASKED, lambda s: s.update(allOf=[{"anyOf": [_with("lease", minimum=1), _with("colour")]}])
    ),
    "more alternatives": (
        "observed.v1", Way.ASKED, lambda s: s["properties"]["observations"]["items"]["anyOf"].append({"type": "null"})
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GROWN)
def test_what_breaks_nobody_is_let_through(what: str) -> None:
    """Fields that need not be there, further values, and wider bounds of what is asked are no breaks."""
    name, way, change = GROWN[what]
    old = schemas()[name]
    new = copy.deepcopy(old)
    change(new)
    assert new != old
    assert breaks(old, new, way) == []


def test_words_are_no_reason_to_publish_again() -> None:
    """Texts for people are left out of what is published; all else stands in it."""
    old = schemas()["lease_granted.v2"]
    new = copy.deepcopy(old)
    new["description"] = new["properties"]["tenant"]["description"] = "other words"
    assert bare(old) == bare(new)
    new["properties"]["title"] = {"type": "string"}
    assert "title" in bare(new)["properties"], "a field may be called so"
