"""What a binder has to tell, until the log has it, or has no use for it any more."""

from collections.abc import Collection

from leasehold.events import limits
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import GivenBack, LetGo, NotPrepared, Observation, Prepared, Stuck
from leasehold.projections.handlog import HandLog

Word = Prepared | NotPrepared | GivenBack | Stuck


class Telling:
    """The words of one run. Of each device the last one counts."""

    def __init__(self, log: HandLog) -> None:
        """`log`: what the log has."""
        self._log = log
        self._words: dict[DeviceKey, Word] = {}
        self._let_go: dict[int, LetGo] = {}
        self._untold: set[DeviceKey | int] = set()
        """Devices and leases of which the wires were not given the word."""

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
        else is held here.
        """
        holds = [hold for hold in self._log.holds.values() if hold.domain == uuid and hold.token]
        stay = {hold.lease for hold in holds if hold.keep or (keys is not None and hold.key not in keys)}
        ended = {hold.lease for hold in holds} - stay
        for lease in sorted(ended - self._let_go.keys()):
            self._let_go[lease] = LetGo(lease)
            self._untold.add(lease)
        return sorted(ended)

    def keep(self, uuid: str) -> None:
        """Do not ask for that any more."""
        for hold in self._log.holds.values():
            if hold.domain == uuid:
                self._let_go.pop(hold.lease, None)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to be told."""
        return bool(self._untold)

    def drain(self) -> list[Observation]:
        """What the wires were not given yet."""
        untold, self._untold = self._untold, set()
        leases = sorted(each for each in untold if isinstance(each, int) and each in self._let_go)
        keys = sorted(each for each in untold if isinstance(each, str) and each in self._words)
        return [*(self._let_go[lease] for lease in leases), *(self._words[key] for key in keys)]

    def again(self) -> None:
        """What was given to the wires may be lost."""
        self._untold = {*self._words, *self._let_go}

    def settle(self, keys: Collection[DeviceKey] | None = None) -> None:
        """Forget what the log has, or has no use for."""
        for key in list(self._words) if keys is None else keys:
            if _is_settled(self._words[key], self._log.holds.get(key)):
                del self._words[key]
        if self._let_go:
            living = {grant.lease for grant in self._log.grants()}
            self._let_go = {lease: word for lease, word in self._let_go.items() if lease in living}


def _is_settled(word: Word, hold: Hold | None) -> bool:
    match word:
        case Prepared(lease=lease):
            return hold is None or hold.lease != lease or not hold.token or hold.prepared
        case NotPrepared(lease=lease):
            return hold is None or hold.lease != lease or not hold.token
        case GivenBack(lease=lease):
            if hold is None or (lease and hold.lease != lease):
                return True
            return not hold.quarantined and (not lease or hold.given_back)
        case Stuck():
            return hold is not None and hold.quarantined
