"""What is believed of a host's domains, and when: looks at a hypervisor become differences against the log.

One look may be wrong: a domain restarts, a list and a detail differ, a daemon that has just begun knows little. So what
is there is believed at once, and what is not is believed when it was missing again and again. Time is an argument, in
ms of a clock that nobody sets.

| what | is believed |
|---|---|
| a domain that appears, what it is, a use of a device | at once |
| a domain that is not listed, a use that is not shown | missing in `LOOKS` looks and for `MISSING_MS` |
| the same after the source began, was away, or was started anew | not before `WARY_MS` and `WARY_LOOKS` of its looks |
| that a device was taken from a domain | not while the source says that it is held, unless another domain has it |
| that a domain has gone | not while one of its devices is held: until then it is `dying` |
| no answer | nothing; after `limits.BLIND_MS` it is told that nothing can be seen |
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.domains import STATES, DomainDescription, DomainPicture, SeenDomain, Use
from leasehold.events.identities import DomainKey
from leasehold.events.inputs import (
    DeviceUnused,
    DeviceUsed,
    DomainGone,
    DomainSeen,
    Observation,
    SourceBlind,
    SourceSees,
)

LOOKS: Final = 2
MISSING_MS: Final = 2_000
"""A reboot's gap is shorter than that as a rule, and then it is one."""
WARY_LOOKS: Final = 5
WARY_MS: Final = 8_000
HELD_MS: Final = 30_000
"""Where a source cannot tell what is held: a domain that has gone is taken to hold its devices for so long."""
RETRY_MS_MAX: Final = 5_000
"""A source that does not answer is asked again no later than after this."""
REST_FACTOR: Final = 4
"""A look is followed by a pause of this many times what it took, at least."""
REASON_CHARS_MAX: Final = 200
DOMID_MAX: Final = 2**31 - 1
VCPUS_MAX: Final = 65_535
_RESTLESS: Final = frozenset({"dying", "shutting_down"})
"""States that do not last."""
_INT_MAX: Final = 2**63 - 1


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a source saw at one time. It is whole: a domain that is not in it was not listed."""

    domains: DomainPicture
    """All domains that it has found out everything about."""
    held: frozenset[str] | None = frozenset()
    """Device words, of those that were asked about, which some domain still has, whether that is listed or not.
    `None`: the source cannot tell."""
    unclear_names: frozenset[str] = frozenset()
    """Domains that are listed by name, and nothing else could be found out now: they stay as they were."""
    unclear_domids: Mapping[int, str] = {}
    """The same by number, with the state if that is known, else empty text."""
    generation: str = ""
    """What tells one run of the hypervisor's daemon from another; empty: it has none, or cannot be told."""


class _Missing(msgspec.Struct):
    """Something that was there is not seen. `since_ms`: when that was first noticed; `looks`: how often."""

    since_ms: int
    looks: int = 0


class _Known(msgspec.Struct):
    """A domain that is believed to be there, and since when it, or a use of it, is missing."""

    domain: DomainDescription
    uses: dict[Use, _Missing | None]
    missing: _Missing | None = None


class Polling:
    """What one run of a poller believes, and what of it the log does not have.

    `asks`, then `saw` or `failed`, for each look; `sync` when it is known what the log has; after that `news`.
    """

    def __init__(self, *, rest_ms: int = limits.POLL_MS_MAX) -> None:
        """`rest_ms`: how seldom the source is asked while nothing changes."""
        self._rest_ms = rest_ms
        self._known: dict[DomainKey, _Known] = {}
        self._told: DomainPicture = {}
        self._told_blind = False
        self._asked_ms: int | None = None
        """Of the first ask since the last answer."""
        self._failures = 0
        self._reason = "it has not answered yet"
        self._answers = 0
        """Since the source was found, the first time or again; 0: never."""
        self._found_ms = 0
        self._generation = ""
        self._calm = 0
        """Looks since something changed."""
        self._now_ms = 0
        self._look = Look(domains={})
        self._unclear_names: Collection[str] = ()
        """Of the look that is being taken in, as the log has names."""
        self._attached: Collection[str] = ()
        """The device words that domains have by the look that is being taken in."""

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def watched(self) -> frozenset[str]:
        """The device words that domains have: a look is to say which of them are held."""
        return frozenset(use.device for known in self._known.values() for use in known.uses if use.use == "attached")

    def asks(self, now_ms: int) -> None:
        """A look begins."""
        if self._asked_ms is None:
            self._asked_ms = now_ms

    def failed(self, reason: str, now_ms: int) -> None:
        """A look came to nothing."""
        self.asks(now_ms)
        self._failures += 1
        self._reason = _text(reason, REASON_CHARS_MAX) or "it does not answer"

    def saw(self, look: Look, now_ms: int) -> None:
        """Take in a look that has ended now."""
        if not self._answers:
            self._miss_from_now_on()
        if not self._answers or self._failures or look.generation != self._generation:
            # What has just begun, or begun to answer, may not know everything yet.
            self._answers, self._found_ms = 0, now_ms
        self._answers += 1
        self._failures, self._asked_ms, self._generation = 0, None, look.generation
        self._calm += 1
        attached = {use.device for seen in look.domains.values() for use in seen.uses if use.use == "attached"}
        self._now_ms, self._look, self._attached = now_ms, look, attached
        self._unclear_names = {_text(name, limits.DOMAIN_NAME_CHARS_MAX) for name in look.unclear_names}
        for key, seen in look.domains.items():
            self._take(key, seen)
        for key in [key for key in self._known if key not in look.domains]:
            self._lack(key, self._known[key])

    def _miss_from_now_on(self) -> None:
        """What the log has was not missing before anybody looked."""
        for known in self._known.values():
            known.missing = None
            known.uses = dict.fromkeys(known.uses)

    def stir(self) -> None:
        """Something is likely to change: look often for a while."""
        self._calm = 0

    def _take(self, key: DomainKey, seen: SeenDomain) -> None:
        """This domain is there."""
        known = self._known.get(key)
        domain = _tidied(seen.domain)
        if known is None:
            if len(self._known) >= limits.DOMAINS_PER_HOST_MAX:
                return
            known = self._known[key] = _Known(domain, {})
            self._calm = 0
        elif _but_memory(known.domain) != _but_memory(domain):
            self._calm = 0
        known.domain, known.missing = domain, None
        self._take_uses(known, seen.uses)

    def _take_uses(self, known: _Known, uses: Collection[Use]) -> None:
        for use in sorted(uses, key=lambda each: each.use):
            if use not in known.uses:
                if len(known.uses) >= limits.USES_PER_DOMAIN_MAX and not (use.use == "attached" and _make_room(known)):
                    continue
                self._calm = 0
            known.uses[use] = None
        # While it is dying, what it had is not shown and not free either.
        if known.domain.state != "dying":
            self._lack_uses(known, [use for use in known.uses if use not in uses])

    def _lack(self, key: DomainKey, known: _Known) -> None:
        """This domain is not among those of which everything is known."""
        look, domain = self._look, known.domain
        if domain.name in self._unclear_names or domain.domid in look.unclear_domids:
            state = look.unclear_domids.get(domain.domid) or domain.state
            self._calm = self._calm if state == domain.state else 0
            known.domain, known.missing = msgspec.structs.replace(domain, state=state), None
            return
        self._lack_uses(known, list(known.uses))
        known.missing = known.missing or _Missing(self._now_ms)
        if not self._is_gone(known.missing):
            return
        if any(use.use == "attached" for use in known.uses):
            known.domain = msgspec.structs.replace(domain, state="dying")
        else:
            del self._known[key]
        self._calm = 0

    def _lack_uses(self, known: _Known, uses: Collection[Use]) -> None:
        """The domain is not shown to use these."""
        held = self._look.held
        for use in uses:
            is_attached = use.use == "attached" and use.device not in self._attached
            if is_attached and held is not None and use.device in held:
                known.uses[use] = None
                continue
            missing = known.uses[use] = known.uses[use] or _Missing(self._now_ms)
            least_ms = HELD_MS if is_attached and held is None else MISSING_MS
            if self._is_gone(missing, least_ms):
                del known.uses[use]
                self._calm = 0

    def _is_gone(self, missing: _Missing, least_ms: int = MISSING_MS) -> bool:
        """Whether it is believed that it has gone, which has been missing once more."""
        missing.looks += 1
        if self._answers < WARY_LOOKS or self._now_ms - self._found_ms < WARY_MS:
            return False
        return missing.looks >= LOOKS and self._now_ms - missing.since_ms >= least_ms

    # --- asking again -----------------------------------------------------------------------------------------------

    def pause_ms(self, took_ms: int, chance: int) -> int:
        """How long to wait before the next look.

        Args:
            took_ms: what the last one took.
            chance: 0 to 999, drawn for this call: no two pollers keep in step.
        """
        if self._failures:
            # Who waits for an answer that does not come is no burden.
            pause = min(limits.POLL_MS_MIN << min(self._failures - 1, 8), RETRY_MS_MAX)
        else:
            calm = 0 if self._is_restless() else min(self._calm, 16)
            pause = max(min(limits.POLL_MS_MIN << calm, self._rest_ms), took_ms * REST_FACTOR)
        return pause - pause // 8 + pause * chance // 4_000

    def _is_restless(self) -> bool:
        """Whether the next look is waited for."""
        return any(
            known.missing is not None or known.domain.state in _RESTLESS or any(known.uses.values())
            for known in self._known.values()
        )

    # --- telling ----------------------------------------------------------------------------------------------------

    def is_blind(self, now_ms: int) -> bool:
        """Whether it has not answered for so long that what is believed may be out of date."""
        if not self._answers:
            return True
        return self._asked_ms is not None and now_ms - self._asked_ms >= limits.BLIND_MS

    def sync(self, in_log: DomainPicture, now_ms: int) -> list[Observation]:
        """All that the log, which has `in_log`, lacks. What only the log has is taken for missing from now on."""
        self._told = dict(in_log)
        for key, seen in in_log.items():
            known = self._known.setdefault(key, _Known(seen.domain, {}, _Missing(now_ms)))
            for use in seen.uses:
                known.uses.setdefault(use, _Missing(now_ms))
        # Whether the log has heard that nothing is seen, or that it is again, is not known: it hears what is so now.
        self._told_blind = not self.is_blind(now_ms)
        return self.news(now_ms)

    def has_news(self, now_ms: int) -> bool:
        """Whether `news` would tell something."""
        return self.is_blind(now_ms) != self._told_blind or self._believed() != self._told

    def news(self, now_ms: int) -> list[Observation]:
        """What is believed and was not told, in an order in which the log can follow: what ends comes first."""
        is_blind = self.is_blind(now_ms)
        before, self._told = self._told, self._believed()
        told: list[Observation] = differences(before, self._told)
        if is_blind and not self._told_blind:
            told.append(SourceBlind(self._reason))
        elif self._told_blind and not is_blind:
            told.append(SourceSees())
        self._told_blind = is_blind
        return told

    def _believed(self) -> DomainPicture:
        return {key: SeenDomain(known.domain, tuple(sorted(known.uses))) for key, known in self._known.items()}


def differences(before: DomainPicture, after: DomainPicture) -> list[Observation]:
    """What leads from one picture to the other: uses that end, domains that go, domains, uses that begin."""
    unused: list[Observation] = []
    gone: list[Observation] = []
    seen: list[Observation] = []
    used: list[Observation] = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        had, has = (was.uses if was else ()), (now.uses if now else ())
        unused += [DeviceUnused(key, use.device, use.use) for use in had if use not in has]
        used += [DeviceUsed(key, use.device, use.use) for use in has if use not in had]
        if now is None:
            gone.append(DomainGone(key))
        elif was is None or was.domain != now.domain:
            seen.append(DomainSeen(now.domain))
    return [*unused, *gone, *seen, *used]


def _make_room(known: _Known) -> bool:
    """Whether a claim was dropped for what a domain has: only that keeps a device from being leased."""
    claim = max((use for use in known.uses if use.use == "configured"), default=None)
    if claim is not None:
        del known.uses[claim]
    return claim is not None


def _but_memory(domain: DomainDescription) -> DomainDescription:
    """Without what a balloon changes all the time: that is told, and no reason to look more often."""
    return msgspec.structs.replace(domain, memory_bytes=0)


def _tidied(domain: DomainDescription) -> DomainDescription:
    """As the log takes it, whatever the hypervisor said: one that cannot be told would hide all others."""
    return msgspec.structs.replace(
        domain,
        name=_text(domain.name, limits.DOMAIN_NAME_CHARS_MAX),
        kind=_text(domain.kind, limits.DOMAIN_KIND_CHARS_MAX),
        state=domain.state if domain.state in STATES else "unknown",
        domid=domain.domid if 0 <= domain.domid <= DOMID_MAX else -1,
        memory_bytes=min(max(domain.memory_bytes, 0), _INT_MAX),
        max_memory_bytes=min(max(domain.max_memory_bytes, 0), _INT_MAX),
        vcpus=min(max(domain.vcpus, 0), VCPUS_MAX),
    )


def _text(text: str, chars_max: int) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:chars_max])
