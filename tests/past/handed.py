"""Random logs of devices that are handed over, taken back, or stuck, under leases that are revoked, on dead hosts."""

import random
from collections.abc import Callable
from typing import Final

from leasehold.events import inputs
from leasehold.events.hostdevs import RESETS, STUBS
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.events.inputs import Observation
from tests.projections.ledger import H1, H2, A, B, Ledger, device, ledger_with_hosts

STEPS: Final = 200
PLACES: Final = ("01:00.0", "03:00.0", "03:10.0", "04:00.0", "2-1.1", "2-2", "0a:00.0", "02:00.0", "02:00.1")
DRIVERS: Final = ("e1000e", "igb", "vfio-pci", "")


class Hands:
    """The binder of the managed host, which does what it should by chance."""

    def __init__(self, rng: random.Random, ledger: Ledger) -> None:
        self.rng = rng
        self.ledger = ledger
        self.run = 1

    def living(self) -> list[int]:
        return [lease for lease, row in self.ledger.state.leases.items() if not row.ended]

    def held(self, *, ending: bool) -> list[tuple[DeviceId, int]]:
        rows = self.ledger.state.devices.items()
        return [(each, row.lease) for each, row in rows if row.lease and row.ending == ending and row.host == H1]

    def say(self, *words: Observation) -> None:
        self.ledger.bind(*words, run=self.run)

    def prepare(self) -> None:
        for each, lease in self.held(ending=False):
            key, draw = split_device_id(each)[1], self.rng.random()
            if draw < 0.5:
                driver, reset = self.rng.choice(STUBS), self.rng.choice(("", *RESETS))
                self.say(inputs.Prepared(key, lease, driver, self.rng.choice(DRIVERS), reset))
            elif draw < 0.6:
                self.say(inputs.NotPrepared(key, lease, "the probe failed"))

    def take_back(self) -> None:
        for each, lease in self.held(ending=True):
            key, draw = split_device_id(each)[1], self.rng.random()
            if draw < 0.5:
                self.say(inputs.GivenBack(key, lease, self.rng.choice(DRIVERS)))
            elif draw < 0.7:
                self.say(inputs.Stuck(key, lease, f"it hangs ({self.rng.randrange(3)})", "pull it out"))


class _Log(Hands):
    """A ledger with two hosts, of which one is managed; what happens there is drawn by chance."""

    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed), ledger_with_hosts())
        self.ledger.start_binder(H1)

    def lease(self) -> None:
        driver = self.rng.choice(("", *STUBS))
        count = self.rng.choice((1, 1, 2))
        self.ledger.lease(*self.rng.sample(PLACES, count), principal=self.rng.choice((A, B)), driver=driver)

    def end(self) -> None:
        ending = sorted({lease for _, lease in self.held(ending=True)})
        if not (self.living() or ending):
            return
        is_over = bool(ending) and (not self.living() or self.rng.random() < 0.2)
        lease = self.rng.choice(ending if is_over else self.living())
        if not is_over and self.rng.random() < 0.5:
            self.ledger.release(lease, principal=self.ledger.state.leases[lease].principal)
            return
        request = inputs.RevokeRequest(
            request_id=self.ledger.new_id(), issued_at_ns=self.ledger.now_ns, lease=lease, reason="needed elsewhere",
            force=self.rng.random() < 0.5,
        )  # fmt: skip
        self.ledger.ask(request, B)

    def stick(self) -> None:
        """One that nobody has, as a binder does that finds something of before."""
        key = split_device_id(device(self.rng.choice(PLACES)))[1]
        self.say(inputs.Stuck(key, 0, "it is on vfio-pci, and nobody knows why", "look at it"))

    def unstick(self) -> None:
        aside = [each for each, row in self.ledger.state.devices.items() if row.quarantine is not None]
        if aside and self.rng.random() < 0.5:
            self.ledger.confirm_free(self.rng.choice(aside), principal=B)
        elif aside:
            self.say(inputs.GivenBack(split_device_id(self.rng.choice(aside))[1], 0, "e1000e"))

    def change(self) -> None:
        self.ledger.change(self.rng.choice(PLACES), driver=self.rng.choice(DRIVERS))

    def wait(self) -> None:
        self.ledger.tick(self.rng.choice((0, 1, 6, 6, 70)))

    def die(self) -> None:
        """A host falls silent, is declared dead, and may come back; also the one that has no binder."""
        host: HostName = self.rng.choice((H1, H2))
        for agent, source in list(self.ledger.state.hosts[host].sources.items()):
            self.ledger.note(inputs.HostHeard(host, agent, source.run, alive=False))
        request = inputs.DeclareDeadRequest(
            request_id=self.ledger.new_id(), issued_at_ns=self.ledger.now_ns, host=host, reason="the plug is out"
        )
        self.ledger.ask(request, B)
        self.wait()
        if self.rng.random() < 0.3:
            retire = inputs.RetireAgentRequest(
                request_id=self.ledger.new_id(), issued_at_ns=self.ledger.now_ns, host=host, agent=inputs.BINDER,
                reason="it will not come back",
            )  # fmt: skip
            self.ledger.ask(retire, B)
            self.wait()
        self.run += 1
        back: list[Callable[[], None]] = [lambda: self.see_all(host)]
        if host == H1:
            back.append(lambda: self.ledger.start_binder(H1, run=self.run))
        self.rng.shuffle(back)
        for start in back:
            start()
            self.wait()

    def see_all(self, host: HostName) -> None:
        """Its watcher reports anew."""
        rows = self.ledger.state.devices.values()
        self.ledger.start_host(host, *(row.description for row in rows if row.host == host), run=self.run)


def random_log(seed: int) -> Ledger:
    """A log of a managed and a watched host."""
    log = _Log(seed)
    often = (log.lease, log.prepare, log.prepare, log.take_back)
    steps = (*often * 3, log.end, log.end, log.change, log.wait, log.wait, log.stick, log.unstick)
    for _ in range(STEPS):
        (log.rng.choice(steps) if log.rng.random() < 0.98 else log.die)()
    return log.ledger
