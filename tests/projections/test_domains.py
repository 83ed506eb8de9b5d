"""Domains in the ledger: what follows from a poller's words, whose devices are whose, and what is not granted."""

from typing import Any

import msgspec
import pytest

from leasehold.events import event_types, inputs, limits
from leasehold.events.capabilities import UsbDevice
from leasehold.events.domains import SeenDomain, Use
from leasehold.events.identities import DeviceId, DeviceKey
from leasehold.events.inputs import Observed
from leasehold.events.refusals import RefusalCode
from leasehold.projections.domains import domain_view, list_domains, seen_domains
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.views import device_view, device_word
from tests.projections.domains import (
    MDEV_UUID,
    OTHER,
    SLICE,
    STICK,
    TWIN,
    UUID,
    Polled,
    described,
    domain,
    key,
    polled_ledger,
    unused,
    used,
)
from tests.projections.ledger import H1, H2, SECOND, Ledger, device, refusal_of


def kinds(ledger: Ledger) -> list[str]:
    """What the last record says, without that a message was taken."""
    names = [type(event).__name__ for event in ledger.events]
    return [name for name in names if name != "ObservationsAccepted"]


# --- what follows from words --------------------------------------------------------------------------------------


def test_a_new_domain_and_its_devices_come_in_one_message() -> None:
    """A domain and what it uses may be told of together, before or behind each other's messages."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"), used("pci/0000:0f:00.0", use="configured"))
    assert kinds(ledger) == ["DomainAppeared", "AttachmentSeen", "AttachmentSeen"]
    seen = [event for event in ledger.events if isinstance(event, event_types.AttachmentSeen)]
    assert [each.devices for each in seen] == [(DeviceKey("pci/0000:01:00.0"),), ()]
    assert seen_domains(ledger.state, H1, "poller") == [
        SeenDomain(described(), (Use("pci/0000:01:00.0", "attached"), Use("pci/0000:0f:00.0", "configured")))
    ]


def test_equal_words_make_no_events() -> None:
    """What is known already is not told again, in the same message or in a later one."""
    ledger, poller = polled_ledger()
    words = (inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    poller.say(*words, *words)
    assert kinds(ledger) == ["DomainAppeared", "AttachmentSeen"]
    poller.say(*words)
    assert kinds(ledger) == []


@pytest.mark.parametrize(
    ("fields", "kind", "changed"),
    [
        ({"state": "paused"}, "DomainChanged", ("state",)),
        ({"name": "web2", "memory_bytes": 5}, "DomainChanged", ("memory_bytes", "name")),
        ({"domid": 8}, "DomainStarted", ("domid",)),
        ({"domid": -1, "state": "halted"}, "DomainChanged", ("domid", "state")),
    ],
)
def test_changes(fields: dict[str, Any], kind: str, changed: tuple[str, ...]) -> None:
    """Another number of the incarnation is a start; anything else, also its end, is a change that says of what."""
    ledger, poller = polled_ledger()
    poller.see()
    since = ledger.state.domains[domain()].since_position
    poller.see(**fields)
    assert kinds(ledger) == [kind]
    event = ledger.events[-1]
    assert isinstance(event, event_types.DomainChanged | event_types.DomainStarted)
    assert event.changed == changed
    if isinstance(event, event_types.DomainStarted):
        assert event.was_domid == 7
    else:
        told = {"name": "web", "state": "running"}
        assert event.was == {name: told[name] for name in changed if name in told}
    assert (ledger.state.domains[domain()].since_position > since) == (kind == "DomainStarted")


def test_a_start_after_a_halt() -> None:
    """A halted domain that runs again was started, from no incarnation."""
    ledger, poller = polled_ledger()
    poller.see(domid=-1, state="halted")
    poller.see(domid=3)
    (event,) = [event for event in ledger.events if isinstance(event, event_types.DomainStarted)]
    assert event.was_domid == -1


def test_a_vanish_lets_go_first() -> None:
    """A domain goes when nothing is held for it: its uses end before, in the same message too; else it stays."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    poller.gone()
    assert kinds(ledger) == []
    assert domain() in ledger.state.domains
    poller.say(unused("pci/0000:01:00.0"), inputs.DomainGone(key()))
    assert kinds(ledger) == ["AttachmentGone", "DomainVanished"]
    assert not ledger.state.domains
    poller.say(inputs.DomainSeen(described()), inputs.DomainGone(key()), inputs.DomainSeen(described(domid=9)))
    assert kinds(ledger) == ["DomainAppeared", "DomainVanished", "DomainAppeared"]


def test_words_that_cannot_follow_are_left_out() -> None:
    """Uses of domains that are not known, ends of what never was: nothing comes of them, and nothing breaks."""
    ledger, poller = polled_ledger()
    poller.say(
        used("pci/0000:01:00.0"), unused("pci/0000:01:00.0"), inputs.DomainGone(key()), inputs.SourceSees(),
        inputs.DomainSeen(described(OTHER)), unused("mdev/" + MDEV_UUID, OTHER),
    )  # fmt: skip
    assert kinds(ledger) == ["DomainAppeared"]


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """More domains than a host may have, or more uses than a domain may, are not taken; what goes makes room."""
    monkeypatch.setattr(limits, "DOMAINS_PER_HOST_MAX", 2)
    monkeypatch.setattr(limits, "USES_PER_DOMAIN_MAX", 2)
    ledger, poller = polled_ledger()
    third = "c0ffee00-0000-4000-8000-000000000003"
    poller.say(
        *(inputs.DomainSeen(described(uuid)) for uuid in (UUID, OTHER, third)),
        used("pci/0000:01:00.0", third),
        *(used(f"pci/0000:01:00.{number}") for number in range(3)),
    )
    assert kinds(ledger) == ["DomainAppeared"] * 2 + ["AttachmentSeen"] * 2
    poller.say(inputs.DomainGone(key(OTHER)), inputs.DomainSeen(described(third)))
    assert kinds(ledger) == ["DomainVanished", "DomainAppeared"]
    poller.say(unused("pci/0000:01:00.0"), used("pci/0000:01:00.7"))
    assert kinds(ledger) == ["AttachmentGone", "AttachmentSeen"]


def test_a_full_message_fits_into_a_record() -> None:
    """The largest message of new domains and uses becomes one record."""
    ledger, poller = polled_ledger()
    seen = [inputs.DomainSeen(described(f"c0ffee00-0000-4000-8000-{number:012x}")) for number in range(2, 201)]
    uses = [used(f"pci/0000:{number:02x}:00.0") for number in range(54)]
    poller.say(inputs.DomainSeen(described()), *seen, *uses)
    assert len(ledger.events) == 255
    assert len(ledger.state.domains) == 200
    assert len(ledger.state.domains[domain()].uses) == 54


# --- blindness ----------------------------------------------------------------------------------------------------


def test_a_blind_poller_makes_its_host_stale() -> None:
    """Nothing is granted while the hypervisor does not answer; a whole report or being heard does not end that."""
    ledger, poller = polled_ledger()
    poller.see()
    poller.say(inputs.SourceBlind("xend does not answer"))
    assert kinds(ledger) == ["SourceWentBlind"]
    assert ledger.state.hosts[H1].stale == "poller: xend does not answer"
    assert domain_view(ledger.state, domain()).stale == "poller: xend does not answer"
    assert refusal_of(ledger.lease("01:00.0")).code is RefusalCode.HOST_STALE
    poller.say(inputs.SourceBlind("still not"))
    assert kinds(ledger) == []
    poller.say(inputs.PictureComplete(since=1))
    poller.hear(alive=False)
    assert ledger.state.hosts[H1].stale == "poller: it has not been heard for 15 s"
    poller.hear(alive=True)
    assert ledger.state.hosts[H1].stale == "poller: xend does not answer"
    poller.say(inputs.SourceSees())
    assert kinds(ledger) == ["SourceSeesAgain"]
    assert ledger.lease("01:00.0").outcome == "granted"
    assert domain() in ledger.state.domains


def test_a_new_run_is_not_blind() -> None:
    """What a run before could not see says nothing of the new one."""
    ledger, poller = polled_ledger()
    poller.say(inputs.SourceBlind("no"), inputs.SourceSees(), inputs.SourceBlind("still no"))
    assert kinds(ledger) == ["SourceWentBlind"]
    poller.start()
    assert not ledger.state.hosts[H1].stale


def test_a_poller_alone_shows_no_devices() -> None:
    """A host of which only domains are told is not granted from: nobody says whether its devices are still there."""
    ledger, _ = polled_ledger()
    ledger.observe(inputs.SourceStops())
    answer = ledger.ask(_retire(ledger, "watcher"))
    assert answer.outcome == "retired"
    assert ledger.state.hosts[H1].stale == "no agent tells of its devices"
    assert refusal_of(ledger.lease("01:00.0")).code is RefusalCode.HOST_STALE


# --- devices that domains have ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "devices"),
    [
        ("pci/0000:01:00.0", [device("01:00.0")]),
        ("usb-port/1-3", [DeviceId(f"{H1}/{STICK.key}")]),
        ("usb-address/1.3", [DeviceId(f"{H1}/{STICK.key}")]),
        ("usb-id/0529:0001", [DeviceId(f"{H1}/{STICK.key}"), DeviceId(f"{H1}/{TWIN.key}")]),
        (f"mdev/{MDEV_UUID}", [DeviceId(f"{H1}/{SLICE.key}")]),
    ],
)
def test_an_attached_device_is_foreign(word: str, devices: list[DeviceId]) -> None:
    """By whatever word: a device that a domain has without a lease is not granted, and says who has it."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used(word))
    for each in devices:
        assert device_word(ledger.state, each) == ("foreign", f"used without a lease by domain web ({domain()})")
        refusal = refusal_of(ledger.ask(ledger.request(each)))
        assert (refusal.code, refusal.blockers[0].rule) == (RefusalCode.DEVICE_IN_USE, "in_use")
        (user,) = device_view(ledger.state, each).used_by
        assert (user.domain, user.name, user.use, user.said) == (domain(), "web", "attached", word)
    (shown,) = domain_view(ledger.state, domain()).uses
    assert (list(shown.devices), shown.foreign, shown.lease) == (devices, True, "")
    poller.say(unused(word))
    for each in devices:
        assert device_word(ledger.state, each)[0] == "free"


def test_a_device_that_many_have_is_told_of_in_few_words() -> None:
    """However many domains may have a device, a refusal that stands in the log names the first ones."""
    ledger, poller = polled_ledger()
    uuids = [f"c0ffee00-0000-4000-8000-{number:012x}" for number in range(100)]
    poller.say(*(inputs.DomainSeen(described(uuid, name="x" * 255)) for uuid in uuids))
    poller.say(*(used("usb-id/0529:0001", uuid) for uuid in uuids))
    refusal = refusal_of(ledger.ask(ledger.request(f"{H1}/{STICK.key}")))
    assert refusal.message.endswith(", 96 more domains")
    assert len(refusal.message) < 2_000
    assert len(device_view(ledger.state, DeviceId(f"{H1}/{STICK.key}")).used_by) == limits.USERS_SHOWN_MAX


def test_a_configured_device_is_granted() -> None:
    """What a configuration claims is shown, and keeps nothing from being granted."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described(domid=-1, state="halted")), used("pci/0000:01:00.0", use="configured"))
    assert device_view(ledger.state, device("01:00.0")).used_by[0].use == "configured"
    ledger.granted("01:00.0")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("pci/0000:02:00.0", "02:00.1"),
        ("pci/0000:03:00.0", "03:10.0"),
        ("pci/0000:03:10.0", "03:00.0"),
        ("pci/0000:04:00.0", "2-1"),
        ("usb-port/1-3", "04:00.0"),
        (f"mdev/{MDEV_UUID}", "0a:00.0"),
    ],
)
def test_what_is_tied_to_an_attached_device_is_not_granted(word: str, text: str) -> None:
    """A domain that has a device keeps others from what cannot be owned apart from it."""
    ledger, poller = polled_ledger()
    ledger.granted(text)
    ledger.release(next(iter(ledger.state.leases)))
    poller.say(inputs.DomainSeen(described()), used(word))
    refusal = refusal_of(ledger.lease(text))
    assert refusal.code is RefusalCode.DEVICE_IN_USE
    assert "domain web" in refusal.message
    assert device_word(ledger.state, device(text))[0] == "blocked"


def test_words_find_devices_whichever_came_first() -> None:
    """A use that was told of before its device is known counts once it is, and one that is replugged is found anew."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("usb-address/1.9"), used("pci/0000:0e:00.0"))
    moved = msgspec.structs.replace(STICK, capability=UsbDevice(bus=1, device=9))
    ledger.see(moved)
    stick = DeviceId(f"{H1}/{STICK.key}")
    assert device_word(ledger.state, stick)[0] == "foreign"
    ledger.see(msgspec.structs.replace(STICK, capability=UsbDevice(bus=1, device=10)))
    assert device_word(ledger.state, stick)[0] == "free"


def test_another_thing_at_a_place_is_not_what_was_meant_by_its_make() -> None:
    """A word for any device of a make finds what is plugged in now."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("usb-id/0529:0001"))
    ledger.see(msgspec.structs.replace(STICK, product_id="0002"))
    assert device_word(ledger.state, DeviceId(f"{H1}/{STICK.key}"))[0] == "free"
    assert device_word(ledger.state, DeviceId(f"{H1}/{TWIN.key}"))[0] == "foreign"
    ledger.see(STICK)
    assert device_word(ledger.state, DeviceId(f"{H1}/{STICK.key}"))[0] == "foreign"


def test_hosts_are_apart() -> None:
    """A domain's devices are those of its own host."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    assert ledger.ask(ledger.request(device("01:00.0", H2))).outcome == "granted"


def test_a_device_is_not_free_while_a_domain_has_it() -> None:
    """The evidence of a watched host: neither its watcher nor its poller shows a user. Then it is free at once."""
    ledger, poller = polled_ledger()
    lease = ledger.granted("01:00.0", domain=UUID)
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    assert device_word(ledger.state, device("01:00.0"))[0] == "leased"
    ledger.release(lease)
    assert ledger.state.devices[device("01:00.0")].ending
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    ledger.tick(1)
    assert ledger.state.devices[device("01:00.0")].ending, "its place may still be held"
    poller.say(unused("pci/0000:01:00.0"))
    assert not ledger.state.devices[device("01:00.0")].ending
    lease = ledger.granted("0a:00.0")
    ledger.release(lease)
    (freed,) = [event for event in ledger.events if isinstance(event, event_types.DeviceFreed)]
    assert freed.evidence == "no user is seen by the host's watcher, and no domain has it"


def test_a_lease_for_one_domain_that_another_has() -> None:
    """The device stays leased, and its reason says which domain has it instead; what the right one has is not noted."""
    ledger, poller = polled_ledger()
    lease = ledger.granted("01:00.0", domain=UUID)
    poller.say(
        inputs.DomainSeen(described()), inputs.DomainSeen(described(OTHER, name="db", domid=8)),
        used("pci/0000:01:00.0"),
    )  # fmt: skip
    word, reason = device_word(ledger.state, device("01:00.0"))
    assert (word, "attached" in reason) == ("leased", False)
    assert not domain_view(ledger.state, domain()).uses[0].foreign
    assert domain_view(ledger.state, domain()).leases == (f"L{lease}",)
    poller.say(unused("pci/0000:01:00.0"), used("pci/0000:01:00.0", OTHER))
    word, reason = device_word(ledger.state, device("01:00.0"))
    assert word == "leased"
    assert f"it is attached to domain db ({domain(OTHER)}), for which it was not leased" in reason
    assert domain_view(ledger.state, domain(OTHER)).uses[0].foreign
    assert domain_view(ledger.state, domain(OTHER)).uses[0].lease == f"L{lease}"


# --- listing ------------------------------------------------------------------------------------------------------


def test_lists() -> None:
    """Domains are listed by host, name, uuid in any spelling, key, id and state, page by page in the order of ids."""
    ledger, poller = polled_ledger()
    second = Polled(ledger, H2)
    poller.say(inputs.DomainSeen(described()), inputs.DomainSeen(described(OTHER, name="db", state="paused")))
    second.see(name="db")
    ids = [domain(), domain(OTHER), domain(host=H2)]
    state = ledger.state

    def listed(**fields: object) -> list[str]:
        rows, more = list_domains(state, **fields)  # type: ignore[arg-type]
        assert not more
        return [row.domain for row in rows]

    assert listed() == ids
    assert listed(host=H1) == ids[:2]
    assert listed(domain="db") == ids[1:]
    assert listed(domain="db", host=H1) == ids[1:2]
    for text in (UUID, UUID.upper(), UUID.replace("-", ""), key()):
        assert listed(domain=text) == [ids[0], ids[2]]
    assert listed(domain=ids[1]) == ids[1:2]
    assert listed(in_state="paused") == ids[1:2]
    assert listed(after=ids[0]) == ids[1:]
    assert listed(domain="nothing") == listed(host="h9") == []
    rows, more = list_domains(state, limit=2)
    assert ([row.domain for row in rows], more) == (ids[:2], True)


def test_a_renamed_domain_is_found_by_its_new_name_only() -> None:
    """Names are those of now."""
    ledger, poller = polled_ledger()
    poller.see()
    poller.see(name="web2")
    assert not list_domains(ledger.state, domain="web")[0]
    assert list_domains(ledger.state, domain="web2")[0]


# --- retiring -----------------------------------------------------------------------------------------------------


def _retire(ledger: Ledger, agent: str = "poller", host: str = H1) -> inputs.RetireAgentRequest:
    return inputs.RetireAgentRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=host, agent=agent, reason="gone for good"
    )


def test_only_what_is_not_heard_is_retired() -> None:
    """An agent that is heard, blind or not, is not retired, nor one that is not known."""
    ledger, poller = polled_ledger()
    for agent, host, code in (
        ("poller", H1, RefusalCode.AGENT_ALIVE),
        ("binder", H1, RefusalCode.AGENT_UNKNOWN),
        ("poller", "h9", RefusalCode.AGENT_UNKNOWN),
    ):
        assert refusal_of(ledger.ask(_retire(ledger, agent, host))).code is code
    poller.say(inputs.SourceBlind("no answer"))
    assert refusal_of(ledger.ask(_retire(ledger))).code is RefusalCode.AGENT_ALIVE


def test_a_retired_poller_is_forgotten_with_its_domains() -> None:
    """Its silence makes nothing stale any more, its domains are gone without a word; asked again, it is one request."""
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    poller.hear(alive=False)
    assert ledger.state.hosts[H1].stale
    request = _retire(ledger)
    first = ledger.ask(request)
    assert first.outcome == "retired"
    assert kinds(ledger) == ["AgentRetired"]
    again = ledger.ask(request)
    assert (again.outcome, again.position) == (first.outcome, first.position)
    assert not ledger.state.domains
    assert not ledger.state.hosts[H1].stale
    ledger.granted("01:00.0")
    poller.see()
    assert kinds(ledger) == [], "the run is not known any more"
    poller.start()
    poller.see()
    assert domain() in ledger.state.domains


# --- all of it ----------------------------------------------------------------------------------------------------


def test_decided_again_and_through_a_snapshot() -> None:
    """All of this is decided again to the byte, and a snapshot of it is the same state with the same indexes."""
    ledger, poller = polled_ledger()
    ledger.granted("01:00.0", domain=UUID, gone_ms=1_000)
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"), used("usb-id/0529:0001", use="configured"))
    poller.see(domid=9)
    poller.say(inputs.SourceBlind("no"), inputs.DomainSeen(described(OTHER)))
    poller.say(inputs.SourceSees(), unused("pci/0000:01:00.0"), inputs.DomainSeen(described(domid=-1, state="halted")))
    ledger.tick(2)
    replay = Replay()
    assert [replay.step(number, body) for number, body in enumerate(ledger.bodies, 1)] == [None] * len(ledger.bodies)
    body = encode_state(ledger.state)
    assert encode_state(replay.state) == body
    again = decode_state(body)
    assert again is not None
    assert encode_state(again) == body
    for name, table in vars(again.indexes).items():
        assert table == vars(ledger.state.indexes)[name], name


def test_only_the_agent_that_told_of_a_domain_speaks_of_it() -> None:
    """Another agent of the host neither changes it nor lets it go."""
    ledger, poller = polled_ledger()
    poller.see()
    ledger.counters[H1] += 1
    message = Observed(
        host=H1, agent="watcher", run=1, counter=ledger.counters[H1],
        observations=(inputs.DomainSeen(described(name="x")), inputs.DomainGone(key())),
    )  # fmt: skip
    ledger.now_ns += SECOND
    ledger.observe_message(message)
    assert kinds(ledger) == []
    assert ledger.state.domains[domain()].description == described()
