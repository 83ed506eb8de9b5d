"""Deciding on what a poller says of domains: what it means for what is known already.

Words of one message are taken in order, each on what those before it will have made of the domains: a new domain and
what it uses come together. What cannot follow (a use of a domain that is not known, the going of one that still uses
something, more than there may be) is left out. No word makes more than one event.
"""

from typing import Any, Final

from leasehold.events import event_types, inputs, limits
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceKey, DomainKey, HostName, domain_id, split_device_id
from leasehold.projections.state import State

_TOLD_BEFORE: Final[tuple[str, ...]] = ("name", "state")
"""Fields of which a change says what was before: people ask for that."""


class _Domain:
    """A domain as it will be behind the words that were taken. `description`: `None` if it is not there."""

    def __init__(self, description: DomainDescription | None, uses: tuple[Use, ...] = ()) -> None:
        self.description = description
        self.uses = set(uses)


class DomainWords:
    """What one message of a host's agent says of domains."""

    def __init__(self, state: State, host: HostName, agent: str) -> None:
        self._state = state
        self._host = host
        self._agent = agent
        self._domains: dict[DomainKey, _Domain] = {}
        self._room = limits.DOMAINS_PER_HOST_MAX - len(state.indexes.domains.get(host, ()))
        self._keys_room = limits.DEVICES_MEANT_PER_MESSAGE_MAX

    def take(self, word: Any) -> Event | None:
        """What follows from the next word, one of `inputs.WORDS_OF_DOMAINS`; `None` if nothing does."""
        match word:
            case inputs.DomainSeen():
                return self._seen(word.domain)
            case inputs.DomainGone():
                return self._gone(word.key)
            case inputs.DeviceUsed():
                return self._used(word)
            case _:
                return self._unused(word)

    def _domain(self, key: DomainKey) -> _Domain | None:
        """A domain that this agent may speak of; `None` if another has told of it."""
        known = self._domains.get(key)
        if known is None:
            row = self._state.domains.get(domain_id(self._host, key))
            if row is not None and row.agent != self._agent:
                return None
            known = _Domain(row.description, row.uses) if row is not None else _Domain(None)
            self._domains[key] = known
        return known

    def _seen(self, after: DomainDescription) -> Event | None:
        known = self._domain(after.key)
        if known is None:
            return None
        before = known.description
        if before is None:
            if self._room <= 0:
                return None
            self._room -= 1
            known.description = after
            return event_types.DomainAppeared(self._host, self._agent, after)
        changed = tuple(name for name in _FIELDS if getattr(before, name) != getattr(after, name))
        if not changed:
            return None
        known.description = after
        if after.domid not in (-1, before.domid):
            return event_types.DomainStarted(self._host, after, before.domid, changed)
        was: dict[str, str] = {name: getattr(before, name) for name in _TOLD_BEFORE if name in changed}
        return event_types.DomainChanged(self._host, after, changed, was)

    def _gone(self, key: DomainKey) -> Event | None:
        known = self._domain(key)
        if known is None or known.description is None or known.uses:
            return None
        before, known.description = known.description, None
        self._room += 1
        return event_types.DomainVanished(self._host, key, before.name, before.domid)

    def _used(self, word: inputs.DeviceUsed) -> Event | None:
        known, use = self._domain(word.domain), Use(word.device, word.use)
        if known is None or known.description is None or use in known.uses:
            return None
        if len(known.uses) >= limits.USES_PER_DOMAIN_MAX:
            return None
        known.uses.add(use)
        name, keys = known.description.name, self._keys(use)
        return event_types.AttachmentSeen(self._host, word.domain, use.device, use.use, keys, name)

    def _unused(self, word: inputs.DeviceUnused) -> Event | None:
        known, use = self._domain(word.domain), Use(word.device, word.use)
        if known is None or use not in known.uses:
            return None
        known.uses.remove(use)
        name, keys = known.description.name if known.description is not None else "", self._keys(use)
        return event_types.AttachmentGone(self._host, word.domain, use.device, use.use, keys, name)

    def _keys(self, use: Use) -> tuple[DeviceKey, ...]:
        named = self._state.named(self._host, use.device)
        told = named[: min(limits.DEVICES_MEANT_MAX, self._keys_room)]
        self._keys_room -= len(told)
        return tuple(split_device_id(device)[1] for device in told)


_FIELDS: Final = tuple(sorted(set(DomainDescription.__struct_fields__) - {"key"}))
