"""What was ever written stays readable, and what is written now is written as ever."""

import hashlib
from typing import Any

import msgspec
import pytest

from leasehold.events import codec
from leasehold.events.record import chain_hash
from leasehold.projections.snapshots import decode_state, encode_state
from tests.golden.samples import OLD_RECORD, ONLY_READ, PARTS, SAMPLES, UNIONS, defaulted, file_of, tags_of
from tests.golden.words import FOLDER

CHAIN = "979bc5ed7a5107db6b287f22da849b36f75fb5816a0d4560dc99d2398a095fdc"
"""The chain hash of `record.v1.json`: what the next record would have said in `prev`."""


@pytest.mark.parametrize("name", SAMPLES)
def test_written_as_ever(name: str) -> None:
    """The sample is encoded to exactly the bytes that are kept."""
    assert codec.encode(SAMPLES[name][0]) == file_of(name).read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_read_as_ever(name: str) -> None:
    """The bytes that are kept are read as exactly the sample."""
    value, kind = SAMPLES[name]
    assert msgspec.json.decode(file_of(name).read_bytes(), type=kind) == value


@pytest.mark.parametrize("union", UNIONS, ids=["requests", "observations", "inputs", "events", "old events"])
def test_every_type_is_kept(union: Any) -> None:
    """Every type that can stand in a log has a sample and a file; a new one cannot be forgotten."""
    tags = tags_of(union)
    assert {str(value.__struct_config__.tag) for value in UNIONS[union]} == tags
    assert all(file_of(tag).is_file() for tag in tags)


def test_no_file_is_orphaned() -> None:
    """A file that was kept once is read by a test for ever."""
    assert {path.name.removesuffix(".json") for path in FOLDER.glob("*.json")} == {*SAMPLES, *ONLY_READ}


@pytest.mark.parametrize(("kind", "union"), PARTS, ids=[kind for kind, _ in PARTS])
def test_every_part_is_kept(kind: str, union: Any) -> None:
    """So has every type that can stand within another."""
    assert {str(value.__struct_config__.tag) for value in PARTS[kind, union]} == tags_of(union)


_RECORDS = {f"record.v1+{what}" for what in ("rules_3", "node_devices", "domains", "host_devices", "scheduling")}
_NEWEST = {name.partition("+")[0]: name for name in SAMPLES}
_GROWN = {name for name in SAMPLES if name != _NEWEST[name.partition("+")[0]]} | _RECORDS
"""What came to their types later stands in other samples."""
_EXCLUDED = {"LeaseRequest.unmanaged", "PrepareRequest.driver"}
"""Beside a driver they cannot be said; a grant has both."""
_EXCLUDED |= {"LeaseRequest.devices", "LeaseRequest.mode", "ReserveRequest.devices", "SetPolicyRequest.clean"}
"""Nor these beside needs and a domain, or for many: `lease.v1` and `lease.v1+shared` have the first two."""
_EXCLUDED |= {f"Need.{field}" for field in ("select", "device_class", "count", "every", "first_of")}
"""A need has options, or says itself what it is; there is one of each."""


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in {"snapshot.v5"} | _GROWN])
def test_samples_say_everything(name: str) -> None:
    """No field of a sample has its default: such a field would not stand in the file."""
    assert set(defaulted(SAMPLES[name][0])) <= _EXCLUDED


def test_record_through_the_codec() -> None:
    """The kept records are read at the door of the log as the samples, and the old one's chain hash is what it was."""
    assert codec.decode_record(file_of("record.v1+rules_3").read_bytes(), 7) == SAMPLES["record.v1+rules_3"][0]
    body = file_of("record.v1").read_bytes()
    assert codec.decode_record(body, 7) == OLD_RECORD
    assert chain_hash(body) == hashlib.sha256(body).hexdigest() == CHAIN


def test_snapshot_through_the_state() -> None:
    """The kept snapshot becomes a state that is written as the same bytes."""
    body = file_of("snapshot.v5").read_bytes()
    state = decode_state(body)
    assert state is not None
    assert encode_state(state) == body


def test_snapshot_of_an_older_fold() -> None:
    """What another version of the fold has written is none, so that the log is folded anew."""
    assert [decode_state(file_of(f"snapshot.v{version}").read_bytes()) for version in range(1, 5)] == [None] * 4
