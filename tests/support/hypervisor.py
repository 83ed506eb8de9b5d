"""A hypervisor on paper: domains that are set by a test, for the real poller to look at."""

import asyncio
from typing import Any

import msgspec

from leasehold.events.domains import DomainDescription, DomainPicture, SeenDomain
from leasehold.events.errors import SourceUnavailableError
from leasehold.events.identities import DomainKey
from leasehold.projections.polling import Look
from leasehold.services.poller.source import Source, uses_of


class PaperHypervisor(Source):
    """See `services.poller.source.Source`. What is changed here is looked at soon."""

    title = "a hypervisor on paper"
    rest_ms = 1_000

    def __init__(self) -> None:
        self.domains: DomainPicture = {}
        self.silent = False
        self._changed = asyncio.Event()

    def put(
        self, uuid: str, *, configured: tuple[str, ...] = (), attached: tuple[str, ...] = (), **fields: Any
    ) -> DomainKey:
        """A domain is like this; without a state it runs."""
        said = {"name": "web", "domid": 5, "state": "running", "memory_bytes": 2**30, "vcpus": 2, "kind": "hvm"}
        domain = msgspec.convert({"key": f"xen/{uuid}", **said, **fields}, DomainDescription)
        self.domains[domain.key] = SeenDomain(domain, uses_of(configured, attached))
        self._changed.set()
        return domain.key

    def drop(self, uuid: str) -> None:
        """A domain is there no more."""
        del self.domains[DomainKey(f"xen/{uuid}")]
        self._changed.set()

    async def look(self, watched: frozenset[str]) -> Look:
        """What is set."""
        if self.silent:
            raise SourceUnavailableError(f"{self.title} is silent")
        used = {use.device for seen in self.domains.values() for use in seen.uses if use.use == "attached"}
        return Look(domains=dict(self.domains), held=frozenset(used & watched))

    async def changed(self) -> None:
        """Return when something was set."""
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Nothing is open."""
