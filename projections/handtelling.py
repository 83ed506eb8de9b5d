"""What a binder has to tell, until the log has it, or has no use for it any more."""

from collections.abc import Collection

from leasehold.events import limits
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import GivenBack, LetGo, NotPrepared, Observation, Prepared, Stuck
from leasehold.projections.handlog import HandLog
from leasehold.projections.handnotes import Grant

Word = Prepared | GivenBack | Stuck


class Telling:
    """The words of one run. Of each device the last one counts; what asks for the end of a lease waits beside these."""

    def __init__(self, log: HandLog) -> None:
        """`log`: what the log has."""
        self._log = log
        self._words: dict[DeviceKey, Word] = {}
        self._ends: dict[Grant, LetGo | NotPrepared] = {}
        self._era = log.era
        self._untold: set[DeviceKey | Grant] = set()
        """Devices and leases of which the wires were not given the word."""

    def failed(self, grant: Grant, word: NotPrepared) -> None:
        """Ask the log to end a lease that cannot be handed over."""
        self._ends[grant] = word
        self._untold.add(grant)

    def tell(self, word: Word) -> None:
        """Let the log have this."""
        self._words[word.key] = word
        self._untold.add(word.key)
        self.settle((word.key,))

    def stuck(self, key: DeviceKey, reason: str, help_: str) -> None:
        """Let the log know once that a device cannot be brought into order: of its ended lease, if there is one."""
        if not self.has(key, Stuck):
            hold = self._log.holds.get(key)
            lease = hold.lease if hold is not None and not hold.token else 0
            self.tell(Stuck(key, lease, reason[: limits.REASON_CHARS_MAX], help_[: limits.REASON_CHARS_MAX]))

    def has(self, key: DeviceKey, kind: type[Word]) -> bool:
        """Whether such a word waits, or is on its way."""
        return isinstance(self._words.get(key), kind)

    def let_go(self, uuid: str, keys: Collection[DeviceKey] | None) -> list[int]:
        """Ask the log to end the leases that end with this domain; which they are. `keys`: only those of which nothing
        else is held here. What is only reserved for it, it cannot have had.
        """
        holds = [hold for hold in self._log.holds.values() if hold.domain == uuid and hold.token]
        stay = {
            hold.lease
            for hold in holds
            if hold.keep or hold.reserved or (keys is not None and hold.key not in keys)
        }
        ended = {Grant(hold.lease, hold.granted_at_ns) for hold in holds if hold.lease not in stay}
        for grant in sorted(ended - self._ends.keys()):
            self._ends[grant] = LetGo(grant.lease)
            self._untold.add(grant)
        return sorted(grant.lease for grant in ended)

    def keep(self, uuid: str) -> bool:
        """Do not ask for that any more; whether the log may have heard it already."""
        grants = {Grant(hold.lease, hold.granted_at_ns) for hold in self._log.holds.values() if hold.domain == uuid}
        asked = {grant for grant in grants if isinstance(self._ends.get(grant), LetGo)}
        for grant in asked:
            del self._ends[grant]
        return not asked <= self._untold

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to be told."""
        return bool(self._untold)

    def drain(self) -> list[Observation]:
        """What the wires were not given yet."""
        untold, self._untold = self._untold, set()
        grants = sorted(each for each in untold if isinstance(each, Grant) and each in self._ends)
        keys = sorted(each for each in untold if isinstance(each, str) and each in self._words)
        return [*(self._ends[grant] for grant in grants), *(self._words[key] for key in keys)]

    def again(self) -> None:
        """What was given to the wires may be lost."""
        self._untold = {*self._words, *self._ends}

    def settle(self, keys: Collection[DeviceKey] | None = None) -> None:
        """Forget what the log has, or has no use for."""
        if self._era != self._log.era:
            # A restored ledger gives the numbers of leases again. What is still so is found, and told, anew.
            self._era, keys = self._log.era, ()
            self._words.clear()
        for key in list(self._words) if keys is None else keys:
            if _is_settled(self._words[key], self._log.holds.get(key)):
                del self._words[key]
        if self._ends:
            living = self._log.grants()
            self._ends = {grant: word for grant, word in self._ends.items() if grant in living}


def _is_settled(word: Word, hold: Hold | None) -> bool:
    match word:
        case Prepared(lease=lease):
            return hold is None or hold.lease != lease or not hold.token or hold.prepared
        case GivenBack(lease=lease):
            if hold is None or (lease and hold.lease != lease):
                return True
            return not hold.quarantined and (not lease or hold.given_back)
        case Stuck():
            return hold is not None and hold.quarantined
