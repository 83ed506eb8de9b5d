"""What a poller looks at: one hypervisor, in one of the ways in which it can be asked.

`tests/poller/conformance.py` holds every source to this.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from leasehold.events import domains
from leasehold.events.domains import DomainDescription, DomainPicture, SeenDomain, Use
from leasehold.events.errors import InvalidInputError
from leasehold.projections.polling import Look

XEN: Final = "xen"
"""The hypervisor in the keys of Xen's domains, whoever tells of them."""


class Source(Protocol):
    """A hypervisor of this host, as it can be asked. One look at a time is asked for; a look may be cancelled."""

    @property
    def title(self) -> str:
        """What it is and where, for people: `xend at /var/run/xend/xmlrpc.sock`."""
        ...

    @property
    def rest_ms(self) -> int:
        """How seldom to look while nothing changes: `limits.POLL_MS_MAX`, or more if `changed` tells of changes."""
        ...

    async def look(self, watched: frozenset[str]) -> Look:
        """Look at everything. It may take up to `limits.POLL_TIMEOUT_MS`, then it is cancelled.

        Args:
            watched: device words that domains are known to have; `Look.held` tells which of these some domain has.

        Raises:
            SourceUnavailableError: it does not answer, or not in a way that can be read; that is never "no domains".
        """
        ...

    async def changed(self) -> None:
        """Return when something may have changed since the last look began; if that cannot be told, never.

        It is cancelled when it is time to look in any case. What is heard while nobody waits is not lost.

        Raises:
            SourceUnavailableError: the connection is lost.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; it may be called twice, and after a failure."""
        ...


def uses_of(configured: Iterable[str], attached: Iterable[str]) -> tuple[Use, ...]:
    """The uses of a domain, sorted, from device words as a hypervisor spells them; what is no such word is left out."""
    found = {Use(word, "configured") for word in _words(configured)}
    found |= {Use(word, "attached") for word in _words(attached)}
    return tuple(sorted(found))


def _words(spelt: Iterable[str]) -> Iterable[str]:
    for word in spelt:
        try:
            yield domains.parse_device_word(word)
        except InvalidInputError:
            continue


def picture(seen: Iterable[tuple[DomainDescription, tuple[Use, ...]]]) -> DomainPicture:
    """The picture of these domains. Of two with one key, the one in an incarnation counts, or the newer one."""
    found: DomainPicture = {}
    for domain, uses in seen:
        before = found.get(domain.key)
        if before is None or before.domain.domid <= domain.domid:
            found[domain.key] = SeenDomain(domain, uses)
    return found
