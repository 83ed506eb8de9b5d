"""Why a request was decided as it was: the chain leads to what really led there, and ends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from leasehold.events import schedule_inputs
from leasehold.events.identities import RequestRef
from leasehold.events.position import sequence_of
from leasehold.events.questions import Blame, Reading
from leasehold.services.archive.blame import CAUSES_MAX
from tests.past.logs import archived, events_of, scheduled, seeds, simulated
from tests.projections.ledger import A, B, Ledger, device, ledger_with_hosts


def links(page: Reading) -> list[tuple[int, str, str]]:
    """Depth, link and type of each cause."""
    return [(cause.depth, cause.because, cause.type) for cause in page.causes]


async def test_a_refusal_leads_to_who_holds_it_and_kept_it(tmp_path: Path) -> None:
    """A refused request names the grant in its way, and the last renewal of that lease."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.tick(20)
    ledger.renew(lease)
    refused = ledger.lease("01:00.0", principal=B)
    assert refused.outcome == "refused"
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=refused.request_id))
    assert links(page) == [
        (0, "", "request_refused.v1"), (1, "asked by", "lease.v1"), (1, "held by", "lease_granted.v2"),
        (1, "kept by", "lease_renewed.v1"),
    ]  # fmt: skip
    assert page.causes[2].position == lease
    assert device("01:00.0") in page.causes[1].text


async def test_a_grant_leads_to_what_made_the_device_free(tmp_path: Path) -> None:
    """A granted request names what freed the device, how the lease before ended, and its last renewal and grant."""
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    ledger.tick(20)
    ledger.renew(first)
    ledger.tick(120)
    granted = ledger.lease("01:00.0", "0a:00.0", principal=B)
    assert granted.outcome == "granted"
    ledger.release(granted.lease, B)
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=granted.request_id, principal="b"))
        shallow = await past.ask(Blame(request_id=granted.request_id, depth=1))
        foreign = await past.ask(Blame(request_id=granted.request_id, principal="a"))
        unknown = await past.ask(Blame(request_id="nobody-asked-this"))
    assert links(page) == [
        (0, "", "lease_granted.v2"), (1, "asked by", "lease.v1"), (1, "free by", "device_freed.v1"),
        (2, "ended by", "lease_expired.v1"), (3, "last renewed by", "lease_renewed.v1"),
        (3, "granted by", "lease_granted.v2"), (1, "known by", "device_appeared.v1"),
        (0, "ended by", "lease_released.v1"), (1, "granted by", "lease_granted.v2"),
    ]  # fmt: skip
    assert [link for link in links(page) if link[0] <= 1] == links(shallow)
    assert foreign.outcome == unknown.outcome == "not_found"


async def test_who_waited_leads_to_what_stood_in_the_way(tmp_path: Path) -> None:
    """Of a request that waited both its place in the queue and its grant are told, and what it waited for; of who was
    evicted, by whose word.
    """
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    waiting = ledger.lease("01:00.0", principal=B, wait_ms=60_000)
    assert waiting.outcome == "queued"
    ledger.release(first)
    ledger.tick()
    (second,) = (lease for lease, row in ledger.state.leases.items() if not row.ended)
    taint = schedule_inputs.TaintRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=device("01:00.0"), name="drain",
        reason="new fans", effect="evict",
    )  # fmt: skip
    assert ledger.ask(taint, A).outcome == "set"
    ledger.tick()
    assert ledger.state.leases[second].ended == "revoked"
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=waiting.request_id, principal="b", depth=1))
    assert links(page) == [
        (0, "", "request_queued.v1"), (1, "asked by", "lease.v1"), (1, "held by", "lease_granted.v2"),
        (0, "", "lease_granted.v2"), (1, "waited since", "request_queued.v1"), (1, "free by", "device_freed.v1"),
        (0, "ended by", "lease_revoked.v1"), (1, "told to by", "tainted.v1"), (1, "granted by", "lease_granted.v2"),
    ]  # fmt: skip
    assert "waiting for up to 1 min" in page.causes[1].text


async def test_one_id_of_two_principals(tmp_path: Path) -> None:
    """An id that two principals have used is asked for by name; the asker's own needs none."""
    ledger: Ledger = ledger_with_hosts()
    for principal in (A, B):
        ledger.ask(ledger.request(device("01:00.0"), request_id="same"), principal)
    async with archived(tmp_path, ledger.bodies) as past:
        both = await past.ask(Blame(request_id="same"))
        own = await past.answerer.answer(Blame(request_id="same"), A)
        named = await past.ask(Blame(request_id="same", principal="b"))
    assert both.outcome == "not_found"
    assert "a, b" in both.message
    assert own.causes[0].type == "lease_granted.v2"
    assert named.causes[0].type == "request_refused.v1"


@pytest.mark.parametrize("made", [simulated, scheduled])
async def test_every_request_of_a_log_can_be_asked_about(tmp_path: Path, made: Callable[[int], list[bytes]]) -> None:
    """Each request that was ever decided has a chain: it begins with a decision, is bounded, and looks back only."""
    (seed,) = seeds(1)
    bodies = made(seed)
    asked: dict[tuple[str, str], int] = {}
    for position, _, event in events_of(bodies):
        ref: RequestRef | None = getattr(event, "request", None)
        if ref is not None:
            asked.setdefault((ref.principal, ref.request_id), position)
    assert asked
    async with archived(tmp_path, bodies) as past:
        for (principal, request_id), position in asked.items():
            page = await past.ask(Blame(request_id=request_id, principal=principal))
            assert page.outcome == "ok", page
            assert page.causes[0].position == position
            assert len(page.causes) <= CAUSES_MAX
            above: list[int] = []
            for cause in page.causes:
                above = [*above[: cause.depth], cause.position]
                assert sequence_of(cause.position) <= len(bodies)
                assert above == sorted(above, reverse=True), page.causes
