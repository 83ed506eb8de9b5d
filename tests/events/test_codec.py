"""What is written reads back; what comes from outside is refused with the field's name, and with nothing else."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasehold.events import codec, inputs, limits
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnknownFormatError
from leasehold.events.event_types import Event
from leasehold.events.identities import RequestId
from leasehold.events.inputs import Input, Observed, Request
from leasehold.events.record import GENESIS_PREV, Record, chain_hash, event_count, ledger_id_of
from leasehold.projections.snapshots import Snapshot
from tests.events.requests import CHANGED, FIELDS, MAY_BE_LEFT_OUT, MUST_BE_SAID, OUT_OF_BOUNDS, REQUESTS
from tests.events.strategies import values
from tests.golden.samples import SAMPLES, file_of

_TEXTS = {"request_id", "device", "reason", "holder", "host", "agent", "domain", "bus", "driver", "operation"}
HOSTILE_BODIES = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"{}",
    b"\x00",
    b"\xff\xfe{}",
    b'{"type":"lease.v1"}',
    b'{"type":"nothing.v9"}',
    b'{"type":7}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"x":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    b'{"request_id":"\xff"}',
    b'{"request_id":"\\ud800"}',
    b'{"issued_at_ns":' + b"9" * 60_000 + b"}",
    b'{"issued_at_ns":1e999}',
    b'{"issued_at_ns":NaN}',
    b'{"issued_at_ns":-0.5}',
    b'{"request_id":"r1"}{"request_id":"r2"}',
]


def body_of(verb: str, /, **changes: Any) -> bytes:
    return json.dumps({**REQUESTS[verb], **changes}).encode()


# --- what is written reads back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Input, Event, Record, Snapshot], ids=["inputs", "events", "records", "snapshots"])
@given(data=st.data())
def test_reads_back(kind: Any, data: st.DataObject) -> None:
    """Any value that can stand in a log reads back as itself, and is written again as the same bytes."""
    value = data.draw(values(kind))
    body = codec.encode(value)
    again = msgspec.json.decode(body, type=kind)
    assert again == value
    assert codec.encode(again) == body


@given(values(Record), st.integers(1, limits.SEQUENCE_MAX))
def test_records_read_back(record: Record, sequence: int) -> None:
    """A record of this format reads back through the door of the log; one of another is refused by name."""
    if record.format != 1:
        with pytest.raises(UnknownFormatError, match=f"record {sequence}: format"):
            codec.decode_record(codec.encode(record), sequence)
    ours = msgspec.structs.replace(record, format=1)
    assert codec.decode_record(codec.encode(ours), sequence) == ours
    assert event_count(ours) == sum(len(step.events) for step in ours.steps)


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_equal_values_are_equal_bytes(value: dict[str, int | str]) -> None:
    """Keys are sorted: the order in which a dictionary was filled does not show."""
    backwards = dict(reversed(value.items()))
    ints = {key: item for key, item in value.items() if not isinstance(item, int) or -(2**63) <= item < 2**63}
    assert codec.encode(ints) == codec.encode({key: backwards[key] for key in reversed(ints)})


@pytest.mark.parametrize("verb", REQUESTS)
def test_requests_read_back(verb: str) -> None:
    """A request is read as what was sent, and written into the record as it was."""
    request = codec.decode_request(verb, body_of(verb))
    assert codec.verb_of(request) == verb
    read = {name: _plain(getattr(request, name)) for name in request.__struct_fields__} | {"type": f"{verb}.v1"}
    assert {name: read[name] for name in REQUESTS[verb]} == REQUESTS[verb]
    unsaid = {name: read[name] for name in read.keys() - REQUESTS[verb].keys()}
    assert not any(unsaid.values()), unsaid
    assert msgspec.json.decode(codec.encode(request), type=Request) == request
    assert type(request) is type(msgspec.json.decode(codec.encode(request), type=Request))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- requests at the door -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "field"), FIELDS)
@given(wrong=st.sampled_from((None, {}, [[]], {"a": 1}, 1.5, b"x".hex())))
def test_wrong_types_name_the_field(verb: str, field: str, wrong: Any) -> None:
    """A field of another type is refused, and the refusal says which field."""
    if field in _TEXTS and isinstance(wrong, str):
        wrong = 7
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request(verb, body_of(verb, **{field: wrong}))
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(("verb", "field"), FIELDS)
def test_missing_fields_are_named(verb: str, field: str) -> None:
    """A field that must be there and is not is named; one that may be left out may."""
    body = {name: value for name, value in REQUESTS[verb].items() if name != field}
    may_be_left_out = {*MAY_BE_LEFT_OUT, "domain", "host"}
    if (field in may_be_left_out and (verb, field) not in MUST_BE_SAID) or (verb, field) == ("renew", "ttl_ms"):
        codec.decode_request(verb, json.dumps(body).encode())
    else:
        with pytest.raises(InvalidInputError) as caught:
            codec.decode_request(verb, json.dumps(body).encode())
        assert caught.value.field == field


@pytest.mark.parametrize("verb", REQUESTS)
@given(name=st.text(min_size=1, max_size=20))
def test_unknown_fields_are_refused(verb: str, name: str) -> None:
    """A field that the request does not have is refused by its name: it might have meant something."""
    if name in REQUESTS[verb] or "`" in name:
        return
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request(verb, body_of(verb, **{name: 1}))
    assert caught.value.field == name


@pytest.mark.parametrize(("verb", "field", "value"), OUT_OF_BOUNDS)
def test_bounds_name_the_field(verb: str, field: str, value: Any) -> None:
    """A value beyond its bound is refused, and the refusal says which field."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request(verb, body_of(verb, **{field: value}))
    assert caught.value.field == field


@pytest.mark.parametrize("verb", [*REQUESTS, "grant", ""])
@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_hostile_requests(verb: str, body: bytes) -> None:
    """Nothing that is not a request is taken for one, however deep, long or broken."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request(verb, body)
    assert caught.value.field


@given(st.sampled_from(list(REQUESTS)), st.binary() | st.text().map(str.encode))
def test_any_bytes_as_request(verb: str, body: bytes) -> None:
    """Bytes by chance are refused as invalid input and raise nothing else."""
    with pytest.raises(InvalidInputError):
        codec.decode_request(verb, body)


def test_large_requests() -> None:
    """A request beyond its bound in bytes is not even read."""
    with pytest.raises(InvalidInputError, match="bytes"):
        codec.decode_request("lease", body_of("lease") + b" " * limits.REQUEST_BYTES_MAX)


@pytest.mark.parametrize("verb", REQUESTS)
def test_verb_and_body_agree(verb: str) -> None:
    """The verb in the subject says what a body is: another request's body under it is refused."""
    for other, body in REQUESTS.items():
        if other != verb:
            with pytest.raises(InvalidInputError):
                codec.decode_request(verb, json.dumps(body).encode())


# --- which request it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "field"), [(verb, field) for verb, field in FIELDS if field not in {"type", "gone_ms", "keep"}]
)
def test_body_hash(verb: str, field: str) -> None:
    """Only the time of issue does not count: with any other field changed it is another request."""
    changed = CHANGED[field]
    one = codec.decode_request(verb, body_of(verb))
    other = codec.decode_request(verb, body_of(verb, **{field: changed}))
    assert (codec.body_hash(one) == codec.body_hash(other)) == (field == "issued_at_ns")
    assert len(codec.body_hash(one)) == 32


def test_body_hash_of_verbs() -> None:
    """A renewal and a release with the same fields are two requests."""
    request_id, lease = RequestId("r1"), 512
    renew = inputs.RenewRequest(request_id=request_id, issued_at_ns=1, lease=lease, token=lease)
    release = inputs.ReleaseRequest(request_id=request_id, issued_at_ns=1, lease=lease, token=lease)
    assert codec.body_hash(renew) != codec.body_hash(release)


# --- observations -------------------------------------------------------------------------------------------------


def observed(**changes: Any) -> bytes:
    sample: dict[str, Any] = json.loads(file_of("observed.v1").read_bytes())
    return json.dumps({**sample, **changes}).encode()


def seen(**changes: Any) -> bytes:
    sample = json.loads(file_of("device_seen.v1").read_bytes())
    return observed(observations=[{**sample, "device": {**sample["device"], **changes}}])


def test_observations_read_back() -> None:
    """A message is read as what the agent sent; fields of later versions are passed over."""
    assert codec.decode_observed(observed()) == SAMPLES["observed.v1"][0]
    assert codec.decode_observed(observed(later=[1])) == SAMPLES["observed.v1"][0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (observed(host="A.b"), "host"),
        (observed(host=""), "host"),
        (observed(agent="Watcher"), "agent"),
        (observed(agent="a.b"), "agent"),
        (observed(run=0), "run"),
        (observed(run=2**63), "run"),
        (observed(counter=-1), "counter"),
        (observed(counter=2**53), "counter"),
        (observed(counter=0), "observations"),
        (observed(observations=[]), "observations"),
        (observed(observations=[{"type": "still_here.v1"}] * 256), "observations"),
        (observed(observations=[{"type": "source_starts.v1"}]), "observations"),
        (observed(counter=0, observations=[{"type": "source_starts.v1"}] * 2), "observations"),
        (observed(observations=[{"type": "nothing.v9"}]), "observations"),
        (observed(observations=[{"type": "device_gone.v1", "key": "pci/0000:0A:00.0"}]), "key"),
        (observed(observations=[{"type": "device_gone.v1", "key": "x"}]), "device"),
        (seen(key="pci/0000:0A:00.0"), "device.key"),
        (seen(parent="pci/0000:0A:00.0"), "device.parent"),
        (seen(physical_function="pci/0000:0A:00.0"), "device.physical_function"),
        (seen(name=""), "device.name"),
        (seen(name="pci.1"), "device.name"),
        (seen(pci_class=-2), "device.pci_class"),
        (seen(iommu_group=2**32), "device.iommu_group"),
        (seen(numa_node=2**32), "device.numa_node"),
        (seen(attributes={str(n): "" for n in range(65)}), "device.attributes"),
        (seen(protections=["x"] * 33), "device.protections"),
        (seen(in_use_by=["x"] * 33), "device.in_use_by"),
        (seen(product_name="x" * 9_000), "device"),
        (b" " * (limits.OBSERVED_BYTES_MAX + 1), "message"),
    ],
)
def test_bounds_of_observations(body: bytes, field: str) -> None:
    """A message beyond a bound, or against the protocol of a source, is refused with the field that is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_observed(body)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_hostile_observations(body: bytes) -> None:
    """Nothing that is not a message of a source is taken for one."""
    with pytest.raises(InvalidInputError):
        codec.decode_observed(body)


def test_deep_unknown_fields_of_observations() -> None:
    """A field of a later version that is nested too deep is invalid input, not the end of the process."""
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(InvalidInputError):
        codec.decode_observed(observed()[:-1] + b',"later":' + deep + b"}")


@given(values(Observed))
@example(SAMPLES["observed.v1"][0])
def test_any_message_of_a_source(message: Observed) -> None:
    """A message by chance is refused as invalid input, or is taken as it is."""
    try:
        taken = codec.decode_observed(codec.encode(message))
    except InvalidInputError:
        return
    assert taken == message


# --- records ------------------------------------------------------------------------------------------------------


def record(**changes: Any) -> bytes:
    sample: dict[str, Any] = json.loads(file_of("record.v1").read_bytes())
    return json.dumps({**sample, **changes}).encode()


def test_fields_of_later_versions_are_passed_over() -> None:
    """A record with fields that this build does not know, at any depth, is read without them."""
    body = json.loads(file_of("record.v1+rules_3").read_bytes())
    assert codec.decode_record(json.dumps(_with_more(body)).encode(), 7) == SAMPLES["record.v1+rules_3"][0]


def _with_more(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_more(item) for item in value]
    if isinstance(value, dict):
        more = {name: item if name == "attributes" else _with_more(item) for name, item in value.items()}
        return {**more, "from_a_later_version": [1, {"x": None}]}
    return value


@pytest.mark.parametrize(
    "step",
    [
        {"input": {"type": "tick.v1", "writer": "a"}, "events": [{"type": "never_heard_of.v1"}]},
        {"input": {"type": "tick.v1", "writer": "a"}, "events": [{"type": "lease_expired.v2", "lease": 1}]},
        {"input": {"type": "never_heard_of.v1"}, "events": []},
    ],
    ids=["event", "version", "input"],
)
def test_unknown_types_stop_the_reader(step: dict[str, Any]) -> None:
    """A type, or a version of one, that this build does not know is never passed over: the record is named."""
    with pytest.raises(UnknownFormatError, match=r"^record 4711: ") as caught:
        codec.decode_record(record(steps=[step]), 4_711)
    assert caught.value.sequence == 4_711
    assert caught.value.code == "unknown_format"


@pytest.mark.parametrize("version", [0, 2, 2**62])
def test_unknown_formats_stop_the_reader(version: int) -> None:
    """A record of another format is not read as one of ours."""
    with pytest.raises(UnknownFormatError, match=f"^record 7: format {version}"):
        codec.decode_record(record(format=version), 7)


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_hostile_records(body: bytes) -> None:
    """Nothing that is not a record is taken for one; the error names the place."""
    with pytest.raises(CorruptLedgerError, match=r"^record 7: ") as caught:
        codec.decode_record(body, 7)
    assert caught.value.sequence == 7


def test_deep_records() -> None:
    """A record with a field nested too deep is corrupt, not the end of the process."""
    deep = b"[" * 200_000 + b"]" * 200_000
    with pytest.raises(CorruptLedgerError):
        codec.decode_record(record()[:-1] + b',"later":' + deep + b"}", 7)


@given(st.binary())
def test_any_bytes_as_record(body: bytes) -> None:
    """Bytes by chance raise nothing but the error that says so."""
    with pytest.raises(CorruptLedgerError):
        codec.decode_record(body, 7)


# --- the chain ----------------------------------------------------------------------------------------------------


@given(st.binary(), st.integers(0, 2**16), st.integers(1, 255))
def test_chain_hash_shows_every_change(body: bytes, at: int, flip: int) -> None:
    """A record of which one byte is changed has another hash."""
    before = b"x" + body
    after = bytearray(before)
    after[at % len(after)] ^= flip
    assert chain_hash(before) != chain_hash(bytes(after))
    assert len(chain_hash(before)) == len(GENESIS_PREV) == 64


def test_chain_covers_all_before() -> None:
    """A record's hash covers all records before, through `prev`: another past gives another hash."""

    def chained(writers: list[str]) -> str:
        prev = GENESIS_PREV
        for writer in writers:
            body = codec.encode(msgspec.structs.replace(SAMPLES["record.v1+rules_3"][0], prev=prev, writer=writer))
            prev = chain_hash(body)
        return prev

    assert chained(["a", "b", "c"]) == chained(["a", "b", "c"])
    assert len({chained(list(order)) for order in ("abc", "bac", "bc", "abcd", "xbc")}) == 5


def test_ledger_ids() -> None:
    """Two ledgers that were begun apart have different ids, and the id of one follows from its first record."""
    ids = {ledger_id_of(*begun) for begun in (("lab", "a", 1), ("lab", "b", 1), ("lab2", "a", 1), ("lab", "a", 2))}
    assert len(ids) == 4
    assert ledger_id_of("lab", "a", 1) in ids
