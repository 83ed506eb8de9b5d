"""What agents report, from the inbox into the sequencer, and how much of it one host may: a source gone wild takes
nobody else's room.

What is dropped here is not lost: the next message of that source shows the gap, and it is asked to report all again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from leasehold.events import codec, limits
from leasehold.events.domains import Use
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DomainId, HostName, device_id, domain_id
from leasehold.events.inputs import POLLER, DeviceSeen, DeviceUsed, DomainSeen, Observed
from leasehold.events.subjects import Subjects
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.services.allocator.buckets import Buckets
from leasehold.services.complaints import Complaints, printable
from leasehold.services.ledger.observed import ObservedReader

_log: Final = logging.getLogger(__name__)


class Intake:
    """Bounds messages and bytes of each host: agents cost nothing to invent, a host's name is in its credential."""

    def __init__(self) -> None:
        self._messages = Buckets[HostName](
            rate_per_s=limits.OBSERVED_PER_HOST_PER_S,
            burst=limits.OBSERVED_PER_HOST_AT_ONCE,
            keys_max=limits.HOSTS_MAX,
        )
        self._bytes = Buckets[HostName](
            rate_per_s=limits.OBSERVED_BYTES_PER_HOST_PER_S,
            burst=limits.OBSERVED_BYTES_PER_HOST_AT_ONCE,
            keys_max=limits.HOSTS_MAX,
        )

    def admit(self, host: HostName, size: int) -> None:
        """A message of `size` bytes has come from this host, and is not decoded yet.

        Raises:
            InvalidInputError: that is too much of it.
        """
        now_s = time.monotonic()
        if not self._messages.take(host, now_s):
            said = f"more than {limits.OBSERVED_PER_HOST_PER_S} messages a second"
        elif not self._bytes.take(host, now_s, size):
            said = f"more than {limits.OBSERVED_BYTES_PER_HOST_PER_S} bytes a second"
        else:
            return
        raise InvalidInputError(f"{host} sends {said}", field="host")


def surplus(state: State, message: Observed) -> int:
    """How many devices of this message find no place on their host, which has as many as it may."""
    row = state.hosts.get(message.host)
    keys = {each.device.key for each in message.observations if isinstance(each, DeviceSeen)}
    if row is None or row.device_count + len(keys) <= limits.DEVICES_PER_HOST_MAX:
        return 0
    unknown = sum(device_id(message.host, key) not in state.devices for key in keys)
    return max(0, row.device_count + unknown - limits.DEVICES_PER_HOST_MAX)


def surplus_of_domains(state: State, message: Observed) -> int:
    """How many domains, and devices that domains use, find no place, by the bounds of a host and of a domain.

    What the same message lets go before is not counted in: it is for a warning.
    """
    if message.agent != POLLER:
        return 0
    seen = {domain_id(message.host, each.domain.key) for each in message.observations if isinstance(each, DomainSeen)}
    known = state.indexes.domains.get(message.host, ())
    found = max(0, len(seen.union(known)) - limits.DOMAINS_PER_HOST_MAX)
    uses: dict[DomainId, set[Use]] = {}
    for each in message.observations:
        if isinstance(each, DeviceUsed):
            uses.setdefault(domain_id(message.host, each.domain), set()).add(Use(each.device, each.use))
    for domain, some in uses.items():
        row = state.domains.get(domain)
        used = some.union(row.uses) if row is not None else some
        found += max(0, len(used) - limits.USES_PER_DOMAIN_MAX)
    return found


class Inbox:
    """Hands what is in OBSERVED to the sequencer, in order, as far as there is room."""

    def __init__(
        self,
        observed: ObservedReader,
        subjects: Subjects,
        sequencer: Sequencer,
        *,
        wall_ns: Callable[[], int],
        arrived: Callable[[], None],
    ) -> None:
        """`arrived` is called for each message that was handed over."""
        self.dropped = Complaints(_log, "messages of the inbox were dropped")
        self._observed = observed
        self._subjects = subjects
        self._sequencer = sequencer
        self._wall_ns = wall_ns
        self._arrived = arrived
        self._room = asyncio.Event()

    def make_room(self) -> None:
        """Something that waited in the sequencer does so no more."""
        self._room.set()

    async def run(self, begun: asyncio.Event) -> None:
        """Hand over what comes until cancelled; only once the ledger has `begun` is it known what was read."""
        await begun.wait()
        following = self._observed.follow(self._sequencer.read_through)
        async with contextlib.aclosing(following) as batches:
            async for batch in batches:
                for sequence, subject, body in batch:
                    while self._sequencer.observed_room <= 0:
                        self._room.clear()
                        await self._room.wait()
                    self._sequencer.observe(sequence, self._read(sequence, subject, body))
                    self._arrived()

    async def check(self) -> None:
        """An inbox that has lost its end would give out sequences that count as read: let it go on behind them.

        Raises:
            UnavailableError: the bus does not answer.
        """
        through = self._sequencer.read_through
        last = await self._observed.last_sequence()
        if last < through:
            _log.warning("the inbox ends at %d, but was read through %d: it goes on from there", last, through)
            await self._observed.move_past(through)

    def _read(self, sequence: int, subject: str, body: bytes) -> Observed | None:
        try:
            host, agent = self._subjects.parse_reporter(subject)
            message = codec.decode_observed(body)
            if (message.host, message.agent) != (host, agent):
                said = f"{message.agent} of {message.host}, but it came as {agent} of {host}"
                raise InvalidInputError(said, field="host")
            if message.run > self._wall_ns() + limits.REQUEST_AHEAD_NS_MAX:
                # Runs are times by their agents' clocks, and no later run could be above the highest number there is.
                raise InvalidInputError(f"{message.run} is more than an hour in the future", field="run")
        except InvalidInputError as error:
            self.dropped.tell(
                "message %d of the inbox on %s was dropped: %s", sequence, printable(subject), error
            )
            return None
        left_out = surplus(self._sequencer.state, message)
        if left_out:
            said = "%s has %d devices, as many as it may: %d more are left out"
            self.dropped.tell(said, host, limits.DEVICES_PER_HOST_MAX, left_out)
        left_out = surplus_of_domains(self._sequencer.state, message)
        if left_out:
            self.dropped.tell("%s has as many domains, or devices in use, as it may: %d are left out", host, left_out)
        return message
