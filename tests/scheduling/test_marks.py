"""Cordons and taints: who is kept away from what, until when, and how it is shown."""

from typing import Any

import pytest

from leasehold.events import limits, schedule_inputs
from leasehold.events.checks import check_request
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import RequestId
from leasehold.events.refusals import RefusalCode
from leasehold.projections.marking import taint_views
from leasehold.projections.snapshots import encode_state
from leasehold.projections.views import host_view
from tests.projections.ledger import H1, H2, B, device, ledger_with_hosts, pci, refusal_of
from tests.scheduling import words
from tests.scheduling.words import OPS, code, cordon, drain, taint, uncordon, untaint, word

CARD, OTHER, AWAY = device("01:00.0"), device("0a:00.0"), device("01:00.0", H2)


# --- cordons ------------------------------------------------------------------------------------------------------


def test_nothing_of_a_cordoned_host_is_granted() -> None:
    """Its leases stay, other hosts' devices are granted; the refusal says who said so, and why."""
    ledger = ledger_with_hosts()
    held = ledger.granted("01:00.0")
    assert cordon(ledger, host=H1).outcome == "set"
    answer = ledger.lease("0a:00.0", principal=B)
    assert code(answer) == RefusalCode.DEVICE_CORDONED
    assert "ops: kernel update" in refusal_of(answer).message
    assert f"leasehold uncordon --host {H1}" in refusal_of(answer).help
    assert ledger.renew(held).outcome == "renewed"
    assert ledger.ask(ledger.request(AWAY)).outcome == "granted"
    assert word(ledger, OTHER) == "cordoned"
    assert word(ledger, CARD) == "leased"
    assert host_view(ledger.state, H1).cordoned == "ops: kernel update"
    words.holds_after_restart(ledger)
    assert uncordon(ledger, host=H1).outcome == "set"
    assert ledger.lease("0a:00.0", principal=B).outcome == "granted"
    assert host_view(ledger.state, H1).cordoned == ""


def test_what_comes_to_a_marked_host_is_marked() -> None:
    """Devices that are plugged in later are kept back as the others are."""
    ledger = ledger_with_hosts()
    cordon(ledger, host=H1)
    drain(ledger, host=H1)
    ledger.see(pci("0f:00.0", iommu_group=99))
    assert code(ledger.lease("0f:00.0")) == RefusalCode.DEVICE_CORDONED
    uncordon(ledger, host=H1)
    assert code(ledger.lease("0f:00.0")) == RefusalCode.DEVICE_TAINTED
    lease = ledger.granted("0f:00.0", tolerates=("drain",))
    ledger.tick(1)
    assert not ledger.state.leases[lease].ended


def test_a_cordoned_device_alone_is_not_granted() -> None:
    """By any of its names; a part of it stands for it."""
    ledger = ledger_with_hosts()
    assert cordon(ledger, device="net_eth0").outcome == "set"
    assert code(ledger.lease("01:00.0")) == RefusalCode.DEVICE_CORDONED
    assert word(ledger, CARD) == "cordoned"
    assert ledger.lease("0a:00.0").outcome == "granted"
    assert uncordon(ledger, device="pci_0000_01_00_0", host=H1).outcome == "set"
    assert ledger.lease("01:00.0").outcome == "granted"


def test_what_is_not_cordoned_cannot_be_uncordoned() -> None:
    """And the refusal says where to look; the same for taints."""
    ledger = ledger_with_hosts()
    assert code(uncordon(ledger, host=H1)) == RefusalCode.NOT_CORDONED
    assert code(untaint(ledger, host=H1)) == RefusalCode.TAINT_UNKNOWN
    cordon(ledger, host=H1)
    refused = uncordon(ledger, device=CARD)
    assert code(refused) == RefusalCode.NOT_CORDONED
    assert H1 in refusal_of(refused).help
    taint(ledger, "loud", device=CARD)
    refused = untaint(ledger, "quiet", device=CARD)
    assert code(refused) == RefusalCode.TAINT_UNKNOWN
    assert "loud" in refusal_of(refused).message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"host": "h9"}, RefusalCode.HOST_UNKNOWN),
        ({"device": "0f:00.0"}, RefusalCode.DEVICE_UNKNOWN),
        ({"device": "pci/0000:01:00.0"}, RefusalCode.DEVICE_AMBIGUOUS),
        ({"device": "h1/pci/0000:02:02.0"}, RefusalCode.DEVICE_UNLEASABLE),
        ({"device": "h1/usb/0000:04:00.0/2-0"}, RefusalCode.DEVICE_UNLEASABLE),
    ],
)
def test_what_cannot_be_marked(fields: dict[str, str], expected: RefusalCode) -> None:
    """Hosts and devices that are not known, or not one, or never leased."""
    assert code(cordon(ledger_with_hosts(), **fields)) == expected
    assert code(taint(ledger_with_hosts(), **fields)) == expected


def test_asking_again_is_safe() -> None:
    """The same request has one effect, also when another word has come in between."""
    ledger = ledger_with_hosts()
    fields = {"request_id": RequestId("once"), "issued_at_ns": ledger.now_ns, "host": H1}
    first = cordon(ledger, **fields)
    uncordon(ledger, host=H1)
    again = cordon(ledger, **fields)
    assert (again.outcome, again.position) == ("set", first.position)
    assert ledger.lease("01:00.0").outcome == "granted"


# --- taints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerates", "is_granted"),
    [
        ((), False),
        (("loud",), False),
        (("broken-fan",), True),
        (("broken-fan=left",), True),
        (("broken-fan=right",), False),
        (("broken-fan=",), False),
        (("loud", "*"), True),
    ],
)
def test_who_tolerates_a_taint_gets_it(tolerates: tuple[str, ...], *, is_granted: bool) -> None:
    """By name, by name and value, or whatever it is."""
    ledger = ledger_with_hosts()
    taint(ledger, host=H1, value="left")
    answer = ledger.lease("01:00.0", tolerates=tolerates)
    assert answer.outcome == ("granted" if is_granted else "refused")
    if not is_granted:
        assert code(answer) == RefusalCode.DEVICE_TAINTED
        assert "broken-fan=left" in refusal_of(answer).message
    assert word(ledger, OTHER) == "tainted"


def test_each_taint_is_to_be_tolerated() -> None:
    """Of the host and of the device, whatever their effects."""
    ledger = ledger_with_hosts()
    taint(ledger, "loud", host=H1)
    drain(ledger, device=CARD)
    assert host_view(ledger.state, H1).taints == ("loud",)
    assert code(ledger.lease("01:00.0", tolerates=("drain",))) == RefusalCode.DEVICE_TAINTED
    assert code(ledger.lease("01:00.0", tolerates=("loud",))) == RefusalCode.DEVICE_TAINTED
    assert ledger.lease("01:00.0", tolerates=("loud", "drain")).outcome == "granted"
    assert ledger.lease("0a:00.0", tolerates=("loud",)).outcome == "granted"


def test_a_taint_of_the_same_name_takes_the_place_of_the_other() -> None:
    """One name stands once; taken away, it is gone whatever its value was."""
    ledger = ledger_with_hosts()
    taint(ledger, host=H1, value="left")
    taint(ledger, host=H1, value="right")
    assert code(ledger.lease("01:00.0", tolerates=("broken-fan=left",))) == RefusalCode.DEVICE_TAINTED
    (view,), _ = taint_views(ledger.state, limit=10)
    assert (view.target, view.kind, view.name, view.value, view.effect, view.by) == (
        H1, "taint", "broken-fan", "right", "no_grant", OPS
    )  # fmt: skip
    untaint(ledger, host=H1)
    assert ledger.lease("01:00.0").outcome == "granted"
    assert taint_views(ledger.state, limit=10) == ([], False)


def test_taints_have_a_bound() -> None:
    """One more than the most is refused; replacing one is not."""
    ledger = ledger_with_hosts()
    for number in range(limits.TAINTS_MAX):
        assert taint(ledger, f"t{number}", device=CARD).outcome == "set"
    assert code(taint(ledger, "more", device=CARD)) == RefusalCode.TAINTS_TOO_MANY
    assert taint(ledger, "t3", value="new", device=CARD).outcome == "set"
    assert taint(ledger, "more", device=OTHER).outcome == "set"
    words.holds_after_restart(ledger)


def test_all_marks_are_listed_in_pages() -> None:
    """In the order of hosts and devices, cordons first, each once, however small the pages are."""
    ledger = ledger_with_hosts()
    cordon(ledger, host=H2)
    taint(ledger, "loud", host=H2)
    for each in (CARD, OTHER, AWAY):
        taint(ledger, "b", device=each)
        cordon(ledger, device=each)
        taint(ledger, "a", device=each)
    expected = [
        (target, kind, name)
        for target, names in ((CARD, "ab"), (OTHER, "ab"), (H2, ["loud"]), (AWAY, "ab"))
        for kind, name in [("cordon", ""), *(("taint", name) for name in names)]
    ]
    for limit in (1, 2, 3, 100):
        found: list[tuple[str, str, str]] = []
        after, has_more = "", True
        while has_more:
            views, has_more = taint_views(ledger.state, after=after, limit=limit)
            found += [(view.target, view.kind, view.name) for view in views]
            after = " ".join(found[-1])
        assert found == expected
    views, _ = taint_views(ledger.state, host=H2, limit=100)
    assert {view.target for view in views} == {H2, AWAY}
    words.holds_after_restart(ledger)


def test_a_lost_record_takes_marks_back() -> None:
    """What another's record stands in place of is as if it had never been said."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    before = encode_state(ledger.state)
    tables = {name: dict(table) for name, table in vars(ledger.state.indexes).items() if isinstance(table, dict)}
    request: dict[str, Any] = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns, "reason": "r"}
    sequencer = ledger.sequencer
    sequencer.ask(1, OPS, schedule_inputs.TaintRequest(name="drain", host=H1, effect="evict", **request))
    sequencer.ask(2, OPS, schedule_inputs.CordonRequest(device=CARD, **{**request, "request_id": ledger.new_id()}))
    assert sequencer.draft(ledger.now_ns) is not None
    assert ledger.state.indexes.evictions
    ledger.state.roll_back()
    assert encode_state(ledger.state) == before
    for name, table in tables.items():
        assert dict(vars(ledger.state.indexes)[name]) == table, name


# --- how it is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (schedule_inputs.CordonRequest, {"reason": "r"}, "host"),
        (schedule_inputs.CordonRequest, {"reason": "", "host": "h1"}, "reason"),
        (schedule_inputs.TaintRequest, {"reason": "r", "host": "h1", "name": "no name"}, "name"),
        (schedule_inputs.TaintRequest, {"reason": "r", "host": "h1", "name": "a", "effect": "burn"}, "effect"),
        (schedule_inputs.TaintRequest, {"reason": "r", "host": "h1", "name": "a", "notice_ms": 1}, "notice_ms"),
        (schedule_inputs.SetPolicyRequest, {"host": "h1", "device": ""}, "device"),
        (schedule_inputs.SetPolicyRequest, {"device": "x", "share_max": 0}, "share_max"),
        (schedule_inputs.SetPolicyRequest, {"device": "x", "share_max": 2, "clean": True}, "clean"),
        (schedule_inputs.HealRequest, {"host": "h1", "device": "", "reason": "r"}, "device"),
    ],
)
def test_bad_words_are_refused_at_the_door(kind: type, fields: dict[str, object], field: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        check_request(kind(request_id=RequestId("r"), issued_at_ns=1, **fields))
    assert caught.value.field == field
