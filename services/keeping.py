"""Many leases of one program, kept together: renewed with one request for up to `limits.RENEWALS_PER_REQUEST_MAX`."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import Final, Protocol, Self

from leasehold.events import limits
from leasehold.events.answers import Answer, NotRenewed
from leasehold.events.errors import InvalidInputError, LeaseholdError, RefusedError
from leasehold.services.holding import Lease, renewal_pause_s

_log: Final = logging.getLogger(__name__)
_PAUSE_S_MIN: Final = 0.05


class ManyRenewer(Protocol):
    """Who asks: `client.Client`."""

    async def renew_many(self, leases: Iterable[tuple[int, int]]) -> Answer:
        """As `Client.renew_many`."""
        ...


class Keeper:
    """Keeps leases while it is entered, and releases those that are left at its end.

        async with client.keeper() as keeper:
            lease = await keeper.take(client.lease(select="device.kind == 'pci'", holder="job:1"))
            ...
            await keeper.let_go(lease)
    """

    def __init__(self, client: ManyRenewer, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock_s = clock_s
        self._due_s: dict[Lease, float] = {}
        self._moved = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Those that it keeps."""
        return tuple(self._due_s)

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._keep_renewing())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
        for lease in self.leases:
            try:
                await self.let_go(lease)
            except LeaseholdError as failed:
                # It ends by itself; the others are to be released all the same.
                _log.warning("lease L%d was not released: %s", lease.id, failed)

    async def take(self, lease: Lease) -> Lease:
        """Ask for a lease that was not entered, wait for its turn, and keep it. Raises as `Client.ask` does."""
        await lease.acquire()
        self._due_s[lease] = self._clock_s() + renewal_pause_s(lease.ttl_ms)
        self._moved.set()
        return lease

    async def let_go(self, lease: Lease) -> None:
        """Release a lease, or only forget it if it is lost. Raises as `Client.ask` does."""
        if self._due_s.pop(lease, None) is not None and not lease.lost.is_set():
            await lease.let_go()

    async def _keep_renewing(self) -> None:
        while True:
            now_s = self._clock_s()
            for lease in [each for each in self._due_s if each.lost.is_set() or not each.is_valid]:
                lease.lose("its time is over, and no renewal succeeded")
                del self._due_s[lease]
            due = [lease for lease, due_s in self._due_s.items() if due_s <= now_s]
            if due:
                await self._renew(due)
                continue
            next_s = min(self._due_s.values(), default=now_s + limits.LEASE_TTL_MS_MAX / 1_000)
            self._moved.clear()
            try:
                async with asyncio.timeout(max(_PAUSE_S_MIN, next_s - now_s)):
                    await self._moved.wait()
            except TimeoutError:
                continue

    async def _renew(self, due: list[Lease]) -> None:
        """Renew these, and with the same request those that are due soon."""
        soon_s = self._clock_s() + min(renewal_pause_s(lease.ttl_ms) for lease in due)
        others = (lease for lease, due_s in self._due_s.items() if due_s <= soon_s and lease not in due)
        # What is due comes first; what does not fit is due again at once.
        chosen = list(islice((*due, *others), limits.RENEWALS_PER_REQUEST_MAX))
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(min(lease.ttl_ms for lease in chosen) / 1_000):
                answer = await self._client.renew_many([(lease.id, lease.token) for lease in chosen])
        except (LeaseholdError, TimeoutError) as error:
            _log.warning("%d leases could not be renewed: %s", len(chosen), error)
            for lease in chosen:
                self._due_s[lease] = self._clock_s() + min(1.0, lease.ttl_ms / 10_000)
            return
        failed = {each.lease: each for each in answer.not_renewed}
        for lease in chosen:
            await self._follow(lease, failed.get(lease.id), sent_s)

    async def _follow(self, lease: Lease, failed: NotRenewed | None, sent_s: float) -> None:
        if lease not in self._due_s:  # it was let go meanwhile
            return
        try:
            if failed is not None:
                await lease.ask_anew(failed)
            lease.renewed(sent_s)
            self._due_s[lease] = self._clock_s() + renewal_pause_s(lease.ttl_ms)
        except (RefusedError, InvalidInputError) as error:
            lease.lose(str(error))
            self._due_s.pop(lease, None)
        except LeaseholdError as error:
            _log.warning("lease L%d could not be renewed: %s", lease.id, error)
            self._due_s[lease] = self._clock_s() + min(1.0, lease.ttl_ms / 10_000)
