"""The descriptions are those of the types, say what the door does, and are read by others as they are meant."""

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events import codec
from leasehold.events.cloudevents import Attributes, header_lines, raw_headers
from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import PAST_QUESTIONS, QUESTIONS
from leasehold.events.subjects import Subjects
from leasehold.services import permissions
from leasehold.services.describing.__main__ import files
from leasehold.services.describing.asyncapi import document, headers
from leasehold.services.describing.messages import ASKABLE, EVENTS, REQUESTS, messages
from leasehold.services.describing.schemas import schemas
from tests.golden.samples import SAMPLES, file_of
from tests.schemas.checking import check
from tests.support import tree

Schema = dict[str, Any]
ASYNCAPI = tree.ROOT / "tests" / "data" / "asyncapi-3.0.0.json"
SUBJECTS = Subjects("lab")


def test_the_files_are_up_to_date() -> None:
    """docs/asyncapi.json and docs/schemas are what the types say now, no file more or less; `make schemas` does it."""
    docs = tree.ROOT / "docs"
    kept = {f"schemas/{path.name}" for path in (docs / "schemas").iterdir()} | {"asyncapi.json"}
    texts = files()
    assert kept == set(texts)
    assert [name for name, text in texts.items() if (docs / name).read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("name", sorted(messages()))
def test_each_schema_is_one(name: str) -> None:
    """Each schema keeps to JSON Schema 2020-12, and refers to nothing that it does not hold."""
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    referred = {text.removeprefix("#/$defs/") for text in _values_of(schema, "$ref")}
    assert referred == set(schema.get("$defs", {}))


def _values_of(value: Any, key: str) -> list[str]:
    if isinstance(value, dict):
        own = [value[key]] if key in value else []
        return own + [found for each in value.values() for found in _values_of(each, key)]
    return [found for each in value for found in _values_of(each, key)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.partition("+")[0] in messages()])
def test_what_was_ever_written_validates(name: str) -> None:
    """Each golden file of an event, a request or a report is valid by its schema, and not without one of its fields."""
    said = json.loads(file_of(name).read_bytes())
    message = name.partition("+")[0]
    check(message, said)
    for field in schemas()[message]["required"]:
        less = {key: value for key, value in said.items() if key != field}
        with pytest.raises(jsonschema.ValidationError):
            check(message, less)


@given(st.data())
def test_what_the_door_takes_is_valid(data: st.DataObject) -> None:
    """A request with values at or beside their bounds: the door takes it if and only if its schema does."""
    verb = data.draw(st.sampled_from(sorted(REQUESTS)))
    name = REQUESTS[verb]
    request = json.loads(file_of(name).read_bytes())
    field = data.draw(st.sampled_from([*schemas()[name]["properties"], "unknown"]))
    request[field] = data.draw(
        st.sampled_from((0, 1, -1, 999, 1_000, 2_592_000_000, 2_592_000_001, 2**53 - 1, 2**53, 2**63 - 1, 2**63))
        | st.sampled_from(("", "a", "h1", "-", "a b", "a" * 64, "a" * 128, "a" * 129, "a" * 1_024, "a" * 1_025, "A"))
        | st.sampled_from((None, True, [], ["a"], [""], ["a"] * 64, ["a"] * 65, [1], {}))
        | st.sampled_from(("lease.v1", "renew.v1", 1.5))
    )
    try:
        codec.decode_request(verb, json.dumps(request).encode())
        taken = True
    except InvalidInputError:
        taken = False
    assert _is_valid(name, request) == taken, request


def _is_valid(name: str, said: object) -> bool:
    try:
        check(name, said)
    except jsonschema.ValidationError:
        return False
    return True


# --- AsyncAPI -----------------------------------------------------------------------------------------------------


def _asyncapi_problems(found: Schema) -> list[str]:
    reader = jsonschema.Draft7Validator(json.loads(ASYNCAPI.read_bytes()))
    return [f"{list(error.absolute_path)}: {error.message[:200]}" for error in reader.iter_errors(found)]


def test_asyncapi_is_what_others_read() -> None:
    """The document keeps to AsyncAPI 3.0 as its own published schema says, and refers to nothing that is not in it."""
    found = document()
    assert _asyncapi_problems(found) == []
    for reference in _values_of(found, "$ref"):
        at: Any = found
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


PLANTED: dict[str, Callable[[Schema], object]] = {
    "another version": lambda d: d.update(asyncapi="2.6.0"),
    "no info": lambda d: d.pop("info"),
    "unknown action": lambda d: d["operations"]["tellEvents"].update(action="shout"),
    "a field that is none": lambda d: d["channels"]["events"].update(subject="x"),
    "a channel that is a text": lambda d: d["channels"].update(events="x"),
    "a key of an unknown kind": lambda d: d["components"]["securitySchemes"]["nkey"].update(type="nkey"),
    "a server without a protocol": lambda d: d["servers"]["bus"].pop("protocol"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_asyncapi_check_finds_faults(what: str) -> None:
    """The published schema does refuse documents: these faults are found."""
    found = copy.deepcopy(document())
    PLANTED[what](found)
    assert _asyncapi_problems(found)


def test_addresses_are_the_subjects() -> None:
    """Each channel's address is the subject that services and clients use, and nobody's permission is forgotten."""
    channels = document()["channels"]
    filled = {"cluster": "lab", "principal": "alice", "host": "h1", "agent": "watcher"}
    for verb in (*REQUESTS, *ASKABLE):
        assert channels[verb]["address"].format(**filled) == SUBJECTS.request("alice", verb)
        assert channels[verb]["x-roles"], verb
    assert channels["lease"]["x-roles"] == ["scheduler", "operator"]
    assert channels["reports"]["address"].format(**filled) == SUBJECTS.observed("h1", "watcher")
    assert channels["heartbeats"]["address"].format(**filled) == SUBJECTS.alive("h1", "watcher")
    assert channels["reports"]["x-roles"] == channels["heartbeats"]["x-roles"] == ["agent"]
    told = {"kind": "lease_granted", "device": "pci/0000:03:00%2E0", "lease": "L512", "tenant": "t"}
    assert channels["events"]["address"].format(**filled, **told) == SUBJECTS.event(
        host="h1", kind="lease_granted", device="pci/0000:03:00.0", lease="L512", tenant="t"
    )
    assert set(REQUESTS) == set(codec.VERBS)
    assert set(ASKABLE) == set(QUESTIONS) | set(PAST_QUESTIONS)


def test_each_message_has_a_place() -> None:
    """Each message stands in a channel, and each channel in an operation or as the place of its replies."""
    found = document()
    used = {name for channel in found["channels"].values() for name in channel["messages"]}
    assert used == set(messages())
    places = {text for text in _values_of(found["operations"], "$ref") if "/messages/" not in text}
    assert places == {f"#/channels/{name}" for name in found["channels"]}
    assert set(found["channels"]["events"]["messages"]) == set(EVENTS)
    assert permissions.roles()["feed"].publish, "the feed may tell"


def test_headers_are_those_of_the_feed() -> None:
    """What the feed writes in its headers is valid by their schema; without one that is needed it is not."""
    said = Attributes(
        cluster="lab", ledger_id="0123456789abcdef", era=1, position=4_352, part=1, parts=2, previous=17,
        tag="lease_granted.v2", at_ns=1_700_000_000_000_000_001, subject="h1/pci/0000:03:00.0", tenant="t", cause="a/b",
    )  # fmt: skip
    found = raw_headers(f"NATS/1.0\r\n{header_lines(said)}\r\n".encode())
    assert set(found) == set(headers()["properties"]), "each that is described, and no other"
    jsonschema.validate(found, headers(), cls=jsonschema.Draft202012Validator)
    for name in headers()["required"]:
        less = {key: value for key, value in found.items() if key != name}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(less, headers(), cls=jsonschema.Draft202012Validator)


def test_fields_say_what_the_sources_say() -> None:
    """The text below a field stands in its schema, for fields of a parent type, too."""
    granted = schemas()["lease_granted.v2"]["properties"]
    assert granted["tenant"]["description"].startswith("Whose matter it is")
    assert msgspec.json.encode(granted["ttl_ms"]) == b'{"type":"integer"}'
