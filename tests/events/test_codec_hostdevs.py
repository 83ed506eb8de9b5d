"""What binders may say, and requests from before there were any: checked at the door, every fault by its field."""

import json
from typing import Any

import pytest

from leasehold.events import codec, inputs
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import Holder, RequestId
from tests.golden.samples import SAMPLES, file_of

WORDS = ("prepared.v1", "not_prepared.v1", "given_back.v1", "stuck.v1", "let_go.v1")
UUID = "c0ffee00-0000-4000-8000-000000000001"


def _message(tag: str, agent: str = "binder", **changes: Any) -> bytes:
    """A binder's message with the sample of one word."""
    said = {**json.loads(file_of(tag).read_bytes()), **changes}
    return json.dumps({
        "type": "observed.v1", "host": "h1", "agent": agent, "run": 1, "counter": 1, "observations": [said],
    }).encode()  # fmt: skip


def _starts(agent: str, *, manages: bool) -> bytes:
    starts = {"type": "source_starts.v1", "manages": manages}
    return json.dumps({
        "type": "observed.v1", "host": "h1", "agent": agent, "run": 1, "counter": 0, "observations": [starts],
    }).encode()  # fmt: skip


@pytest.mark.parametrize("tag", WORDS)
def test_words_of_binders_read_back(tag: str) -> None:
    """A message is read as what the binder said; nobody else may say it."""
    (said,) = codec.decode_observed(_message(tag)).observations
    assert said == SAMPLES[tag][0]
    for agent in ("watcher", "poller", "creator"):
        with pytest.raises(InvalidInputError) as caught:
            codec.decode_observed(_message(tag, agent))
        assert caught.value.field == "agent"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (_message("prepared.v1", key="pci/0000:0A:00.0"), "key"),
        (_message("prepared.v1", lease=0), "lease"),
        (_message("prepared.v1", lease=2**53), "lease"),
        (_message("prepared.v1", driver="x" * 64), "driver"),
        (_message("prepared.v1", driver="a\nb"), "driver"),
        (_message("prepared.v1", was_driver="\x00"), "was_driver"),
        (_message("prepared.v1", reset="kick"), "reset"),
        (_message("not_prepared.v1", lease=0), "lease"),
        (_message("not_prepared.v1", reason=""), "reason"),
        (_message("not_prepared.v1", reason="x" * 513), "reason"),
        (_message("given_back.v1", key="computers"), "device"),
        (_message("given_back.v1", lease=-1), "lease"),
        (_message("given_back.v1", driver="\u202e"), "driver"),
        (_message("stuck.v1", reason=""), "reason"),
        (_message("stuck.v1", help=""), "help"),
        (_message("stuck.v1", help="x" * 513), "help"),
        (_message("let_go.v1", lease=0), "lease"),
        (_starts("binder", manages=False), "manages"),
        (_starts("watcher", manages=True), "manages"),
    ],
)
def test_bounds_of_words(body: bytes, field: str) -> None:
    """A word beyond its bound is refused, and the refusal says which field."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_observed(body)
    assert caught.value.field == field


def test_words_of_no_lease() -> None:
    """What a binder does not know the lease of any more, it may still have brought back, or not."""
    for tag in ("given_back.v1", "stuck.v1"):
        assert codec.decode_observed(_message(tag, lease=0)).observations
    assert codec.decode_observed(_starts("binder", manages=True)).observations


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({}, "50395fa13b233c764762bf2304d43a8d"),
        ({"domain": UUID}, "d95b18d1fdfbdeb117d50382efeaf165"),
        ({"host": "h1", "force": True}, "b85ccc32b915e2798751c7d4654c2d47"),
    ],
)
def test_requests_of_older_builds_are_the_same(fields: dict[str, Any], known: str) -> None:
    """A request that says nothing of how devices are handed over is known by the hash that it always had: asked again
    behind an upgrade, it is still one and the same.
    """
    request = inputs.LeaseRequest(
        request_id=RequestId("r1"),
        issued_at_ns=1,
        devices=("pci/0000:03:00.0",),
        holder=Holder("vm:web"),
        ttl_ms=60_000,
        **fields,
    )
    assert codec.body_hash(request) == known


@pytest.mark.parametrize("verb", ["lease", "prepare"])
def test_an_unmanaged_device_has_no_stub_of_choice(verb: str) -> None:
    """It stays bound as it is; a stub that is said beside that is a contradiction."""
    body = {**json.loads(file_of(f"{verb}.v1").read_bytes()), "unmanaged": True, "driver": "vfio-pci"}
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request(verb, json.dumps(body).encode())
    assert caught.value.field == "driver"
