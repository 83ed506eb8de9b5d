"""Why something stands as it does: the rule, the holder and the way out are named, and what is said is so."""

from leasehold.events import schedule_inputs
from leasehold.events.identities import Holder
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Constraint, Need, Option, Search
from leasehold.projections import explaining
from leasehold.projections.answers import answer_for
from leasehold.projections.snapshots import encode_state
from tests.projections.ledger import A, B, Ledger, device, ledger_with_hosts
from tests.scheduling.words import cordon, say

NIC = 'device.vendor == "8086" && device.kind == "pci"'
ONE = 'device.pci.address == "0000:01:00.0" && device.host == "h1"'


def ledger_with_class() -> Ledger:
    """One with a class."""
    ledger = ledger_with_hosts()
    say(ledger, schedule_inputs.SetClassRequest, name="nic", select=NIC)
    return ledger


def excluded(search: Search | None, need: str = "1") -> dict[str, int]:
    """How many were out of the question, by rule."""
    assert search is not None
    (those,) = (each for each in search.needs if each.need == need)
    return {each.rule: each.count for each in those.excluded}


def test_who_waits_is_told_for_whom() -> None:
    """Of a waiting request the rule, the lease and its holder are named, as it is now, and was when it was decided."""
    ledger = ledger_with_class()
    lease = ledger.granted("01:00.0", holder=Holder("db"))
    waits = ledger.ask(ledger.request(needs=(Need(select=ONE),), wait_ms=60_000), B)
    assert waits.outcome == "queued"
    before = encode_state(ledger.state)
    told = explaining.of_queued(ledger.state, waits.queued)
    assert encode_state(ledger.state) == before
    assert told.of == "queued"
    assert f"db (L{lease})" in told.text
    assert "place 1" in told.text
    assert excluded(told.then) == excluded(told.now) == {"same_device": 1}
    assert told.refusal is not None
    assert told.refusal.help
    cordon(ledger, device=device("01:00.0"))
    told = explaining.of_queued(ledger.state, waits.queued)
    assert "cordoned" in excluded(told.now)


def test_why_this_one_and_not_that_one() -> None:
    """Of a lease that was found it is told how: which option it was, what was passed over, in which order."""
    ledger = ledger_with_class()
    ledger.granted("01:00.0", holder=Holder("db"))
    needs = (Need(name="card", first_of=(Option(select=ONE), Option(device_class="nic"))),)
    answer = ledger.ask(ledger.request(needs=needs), B)
    assert answer.outcome == "granted"
    told = explaining.of_answer(ledger.state, answer)
    assert told is not None
    assert (told.of, told.order[0]) == ("granted", explaining.ORDER)
    assert "option 2" in told.order[1]
    assert told.then is not None
    assert told.then.needs[0].devices == answer.devices
    named = ledger.granted("0a:00.0", principal=B)
    assert explaining.of_lease(ledger.state, named).order == ()
    assert "named in the request" in explaining.of_lease(ledger.state, named).text


def test_why_it_was_refused() -> None:
    """A refusal that is asked about again says by which rules how many devices were out of the question."""
    ledger = ledger_with_class()
    request = ledger.request(
        needs=(Need(device_class="nic", count=2),), constraints=(Constraint(kind="distinct", attribute="vendor"),)
    )
    assert ledger.ask(request, A).outcome == "refused"
    answer = answer_for(ledger.state, f"a/{request.request_id}")  # type: ignore[arg-type] # as it is made of both
    assert answer is not None
    told = explaining.of_answer(ledger.state, answer)
    assert told is not None
    assert told.of == "refused"
    assert told.refusal is not None
    assert told.refusal.code == RefusalCode.CONSTRAINT_UNMET
    assert told.then == told.refusal.search


def test_what_stands_in_the_way_of_a_device() -> None:
    """Of a device all that stands in the way is named, for whoever asks; of a part of it, whose part it is."""
    ledger = ledger_with_class()
    free, nothing = explaining.of_device(ledger.state, device("01:00.0"), (B, ""))
    assert (free.text, free.refusal, nothing) == ("nothing stands in the way", None, ())
    ledger.granted("01:00.0", holder=Holder("db"))
    told, (blocker,) = explaining.of_device(ledger.state, device("01:00.0/net/0"), (B, ""))
    assert "part of h1/pci/0000:01:00.0" in told.text
    assert (blocker.rule, blocker.holder) == ("same_device", "db")
    assert told.refusal is not None
    assert told.refusal.code == RefusalCode.DEVICE_HELD


def test_how_a_class_stands_and_why() -> None:
    """Of a class it is told how its devices stand, and by which rules those that are not free are kept away."""
    ledger = ledger_with_class()
    ledger.granted("01:00.0")
    ledger.granted("0a:00.0")
    told = explaining.of_class(ledger.state, "nic", (B, ""), ledger.now_ns)
    assert "2 leased" in told.text
    assert told.refusal is None
    counts = excluded(told.now)
    assert counts["same_device"] == 2
    assert sum(counts.values()) == sum(int(word) for word in _numbers(told.text)[1:])


def _numbers(text: str) -> list[str]:
    """Devices that are free, leased, kept and out, as they are told."""
    words = text.split("devices: ")[1].replace(";", ",").split(", ")
    return [word.split()[0] for word in words[:4]]
