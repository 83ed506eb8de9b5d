"""Several want one device at once, or something happens while something else is being done."""

import pytest

from leasehold.events import inputs
from leasehold.events.identities import Holder, Principal
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.hostdevs.cluster import OPERATOR, Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.hostdevs.test_pci import DOM_A, DOM_B, NIC, VF0
from tests.projections.ledger import B

CLIENTS, ROUNDS = 6, 8


@scenario(
    "race",
    "6 clients start 6 domains on one card at once, 8 times",
    libvirt="one winner each time, 40 refusals that name it",
    here="the same; and in one record, decided in the order of arrival",
)
def test_one_winner(cluster: Cluster, host: Host) -> None:
    """All requests wait for one record; 8 are granted, 40 refused with the holder's name."""
    refusals = 0
    for _ in range(ROUNDS):
        for client in range(CLIENTS):
            request = cluster.request(NIC, host="h1", holder=Holder(f"vm{client}"), domain=f"{DOM_A[:-1]}{client}")
            assert cluster.sequencer.ask(client, Principal(f"p{client}"), request)
        cluster.commit()
        answers = {reply.ticket: reply.answer for reply in cluster.sequencer.replies}
        cluster.sequencer.replies.clear()
        (winner,) = [client for client, answer in answers.items() if answer.outcome == "granted"]
        for client, answer in answers.items():
            if client != winner:
                assert answer.refusal is not None
                assert [blocker.holder for blocker in answer.refusal.blockers] == [f"vm{winner}"]
                refusals += 1
        cluster.settle()
        assert host.word(NIC) == "leased prepared"
        cluster.give(answers[winner].lease, Principal(f"p{winner}"))
        assert host.word(NIC) == "free"
    assert refusals == ROUNDS * (CLIENTS - 1)


@scenario(
    "race",
    "two starts between `accepted` and `marked`",
    libvirt="the lists are locked for the whole call; xapi had to learn to reserve before the start (xen-api #994)",
    here="whose it is stands in the log before anything is begun; the door waits for the binder, and refuses the other",
)
def test_between_accepted_and_marked(cluster: Cluster, host: Host) -> None:
    """Granted, and not handed over yet: the one has to wait, the other is refused at once."""
    answer = cluster.ask(cluster.request(NIC, host="h1", domain=DOM_A))
    assert answer.outcome == "granted"
    assert host.ask("start", DOM_A, NIC).code == "not_prepared"
    assert host.ask("start", DOM_B, NIC).code == "device_held"
    cluster.settle()
    assert host.ask("start", DOM_A, NIC).ok


@scenario(
    "race",
    "the lease ends while its device is being bound",
    libvirt="one call at a time",
    here="what was begun is brought to its end, and taken back: nothing is left bound",
)
@pytest.mark.parametrize("write", range(4))
def test_an_end_in_the_middle(cluster: Cluster, host: Host, write: int) -> None:
    """Revoked at each of the writes of its handing over."""
    writes = iter(range(100))

    def told(_attribute: str, _text: str) -> None:
        if next(writes) == write:
            lease = cluster.state.devices[host.id(NIC)].lease
            cluster.ask(
                inputs.RevokeRequest(
                    request_id=cluster.new_id(), issued_at_ns=cluster.now_ns, lease=lease, reason="now"
                ),
                OPERATOR,
            )

    host.kernel.on_told = told
    cluster.want(host, NIC, domain=DOM_A)
    cluster.advance(5)
    assert next(writes) > write
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "race",
    "the device is pulled out while it is being bound",
    libvirt="not tried",
    here="the lease fails, the others of it are bound back",
)
@pytest.mark.parametrize("write", range(4))
def test_pulled_out_in_the_middle(cluster: Cluster, host: Host, write: int) -> None:
    """At each of the writes of its handing over."""
    writes = iter(range(100))
    host.kernel.on_told = lambda *_: host.kernel.pci.unplug(kernel.NIC) if next(writes) == write else None
    cluster.want(host, NIC, VF0, domain=DOM_A)
    for _ in range(10):
        cluster.advance(10)
    assert host.view(NIC).state in ("missing", "lost")
    assert (host.word(VF0), host.driver(VF0)) == ("free", "igbvf")


@scenario(
    "race",
    "a request for two devices crosses one for the same two in the other order",
    libvirt="one lock for all",
    here="one is granted both, the other is refused: no dead lock, and no half",
)
def test_crossing(cluster: Cluster, host: Host) -> None:
    """Both are decided in one record."""
    assert cluster.sequencer.ask(1, Principal("a"), cluster.request(NIC, VF0, host="h1"))
    assert cluster.sequencer.ask(2, B, cluster.request(VF0, NIC, host="h1"))
    cluster.commit()
    first, second = (reply.answer for reply in cluster.sequencer.replies)
    cluster.sequencer.replies.clear()
    assert first.outcome == "granted"
    assert second.refusal is not None
    assert second.refusal.code == RefusalCode.DEVICE_HELD
    cluster.settle()
    assert host.word(NIC) == host.word(VF0) == "leased prepared"
