"""What pollers may say of domains, and requests for leases of them: checked at the door, every fault by its field."""

import json
from typing import Any

import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.domains import STATES, parse_device_word
from leasehold.events.errors import InvalidInputError
from tests.golden.samples import SAMPLES, file_of

UUID = "c0ffee00-0000-4000-8000-000000000001"
WORDS = [
    "pci/0000:03:00.0",
    "usb-port/1-1.4",
    "usb-address/1.3",
    "usb-id/0529:0001",
    f"mdev/{UUID}",
]


def _message(tag: str, agent: str = "poller", **changes: Any) -> bytes:
    """A poller's message with the sample of one word."""
    said = json.loads(file_of(tag).read_bytes())
    if tag == "domain_seen.v1":
        changes = {"domain": {**said["domain"], **changes}}
    said = {**said, **changes}
    return json.dumps({
        "type": "observed.v1", "host": "h1", "agent": agent, "run": 1, "counter": 1, "observations": [said],
    }).encode()  # fmt: skip


@pytest.mark.parametrize(
    "tag", ["domain_seen.v1", "domain_gone.v1", "device_used.v1", "device_unused.v1", "source_blind.v1"]
)
def test_words_of_domains_read_back(tag: str) -> None:
    """A message is read as what the poller said."""
    (said,) = codec.decode_observed(_message(tag)).observations
    assert said == SAMPLES[tag][0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (_message("domain_seen.v1", key="xen"), "domain.key"),
        (_message("domain_seen.v1", key=f"Xen/{UUID}"), "domain.key"),
        (_message("domain_seen.v1", key=f"xen/{UUID.upper()}"), "domain.key"),
        (_message("domain_seen.v1", key=f"xen/{UUID.replace('-', '')}"), "domain.key"),
        (_message("domain_seen.v1", name="x" * 256), "domain.name"),
        (_message("domain_seen.v1", domid=-2), "domain.domid"),
        (_message("domain_seen.v1", domid=2**32), "domain.domid"),
        (_message("domain_seen.v1", state="blocked"), "domain.state"),
        (_message("domain_seen.v1", state=""), "domain.state"),
        (_message("domain_seen.v1", memory_bytes=-1), "domain.memory_bytes"),
        (_message("domain_seen.v1", max_memory_bytes=-1), "domain.max_memory_bytes"),
        (_message("domain_seen.v1", vcpus=-1), "domain.vcpus"),
        (_message("domain_seen.v1", kind="x" * 33), "domain.kind"),
        (_message("domain_gone.v1", key=UUID), "key"),
        (_message("device_used.v1", domain="xen/7"), "domain"),
        (_message("device_used.v1", device="0000:03:00.0"), "device"),
        (_message("device_used.v1", device="pci/0000:0A:00.0"), "device"),
        (_message("device_used.v1", use="owned"), "use"),
        (_message("device_unused.v1", domain=""), "domain"),
        (_message("device_unused.v1", device=""), "device"),
        (_message("device_unused.v1", use=""), "use"),
        (_message("source_blind.v1", reason=""), "reason"),
        (_message("source_blind.v1", reason="a\nb"), "reason"),
        (_message("domain_seen.v1", agent="watcher"), "agent"),
        (_message("device_used.v1", agent="watcher"), "agent"),
    ],
)
def test_bad_words_name_the_field(body: bytes, field: str) -> None:
    """What cannot be is refused at the gate, and the refusal says which field."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_observed(body)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["", "(null)", "a b", "\u202e", "web\n", "x" * limits.DOMAIN_NAME_CHARS_MAX])
def test_any_name_of_a_domain_is_taken(name: str) -> None:
    """A hypervisor takes names that we would not: the host's other domains are told of all the same."""
    (said,) = codec.decode_observed(_message("domain_seen.v1", name=name)).observations
    assert isinstance(said, inputs.DomainSeen)
    assert said.domain.name == name


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_taken(state: str) -> None:
    """All states of the vocabulary can be told."""
    (said,) = codec.decode_observed(_message("domain_seen.v1", state=state)).observations
    assert isinstance(said, inputs.DomainSeen)
    assert said.domain.state == state


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_taken(word: str) -> None:
    """All names that hypervisors give to devices can be told, in one spelling."""
    codec.decode_observed(_message("device_used.v1", device=word))
    how, _, name = word.partition("/")
    assert parse_device_word(f"{how}/{name.upper()}") == word


@pytest.mark.parametrize(
    "word",
    ["", "pci", "pci/", "pci/03:00.0", "usb-port/usb1", "usb-port/1-0", "usb-address/1.0", "usb-id/529:1", "mdev/x",
     "net/eth0", "usb-port/1-1\n", "usb-id/0529:0001 "],
)  # fmt: skip
def test_other_words_are_none(word: str) -> None:
    """What names no device is refused with an example of what does."""
    with pytest.raises(InvalidInputError, match=r"looks like|such names are|is not a uuid"):
        parse_device_word(word)


def _lease(**fields: Any) -> bytes:
    body = {
        "request_id": "r1", "issued_at_ns": 1, "devices": ["x"], "holder": "vm", "ttl_ms": 60_000, "type": "lease.v1",
    }  # fmt: skip
    return json.dumps({**body, **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"domain": "web"}, "domain"),
        ({"domain": UUID.upper()}, "domain"),
        ({"domain": UUID, "gone_ms": -1}, "gone_ms"),
        ({"domain": UUID, "gone_ms": limits.GONE_MS_MAX + 1}, "gone_ms"),
        ({"gone_ms": 1_000}, "gone_ms"),
        ({"keep": True}, "keep"),
    ],
)
def test_leases_for_domains_name_the_field(fields: dict[str, Any], field: str) -> None:
    """A lease is for a domain by its uuid; what is said of a domain that is not named is refused."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request("lease", _lease(**fields))
    assert caught.value.field == field


def test_requests_without_a_domain_are_hashed_as_ever() -> None:
    """A request that names no domain has the hash that it had before there were any: asked again, it is known."""
    assert codec.body_hash(codec.decode_request("lease", _lease())) == "7ed979a02605a0e89d43757bc90418ad"
    hashes = [
        codec.body_hash(codec.decode_request("lease", _lease(**fields)))
        for fields in ({}, {"domain": UUID}, {"domain": UUID, "gone_ms": 0}, {"domain": UUID, "keep": True})
    ]
    assert len(set(hashes)) == len(hashes)
