"""What is believed of a host's domains, and when: cases, and any course of looks."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from leasehold.events import limits
from leasehold.events.domains import DomainDescription, DomainPicture, SeenDomain, Use
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
from leasehold.projections.polling import (
    HELD_MS,
    LOOKS,
    MISSING_MS,
    WARY_LOOKS,
    WARY_MS,
    Look,
    Polling,
    differences,
)

GPU = "pci/0000:03:00.0"
NIC = "pci/0000:04:00.0"
KEYS = [DomainKey(f"xen/00000000-0000-4000-8000-00000000000{number}") for number in range(4)]
HAS_GPU = Use(GPU, "attached")
CLAIMS_GPU = Use(GPU, "configured")


def domain(number: int = 1, *uses: Use, domid: int = 1, state: str = "running", **fields: object) -> SeenDomain:
    """One that is seen."""
    key = KEYS[number]
    return SeenDomain(
        msgspec.structs.replace(DomainDescription(key=key, name=f"vm{number}", domid=domid, state=state), **fields),
        tuple(sorted(uses)),
    )


def picture(*seen: SeenDomain) -> DomainPicture:
    """Of these."""
    return {each.domain.key: each for each in seen}


class Course:
    """Looks one after the other, two seconds apart, and what they lead to."""

    def __init__(self, in_log: DomainPicture | None = None, *, is_trusted: bool = True) -> None:
        """`is_trusted`: it has looked so often that it need not be wary any more."""
        self.polling = Polling()
        self.now_ms = 0
        self.in_log = in_log or {}
        self.look(*self.in_log.values())
        assert self.polling.sync(self.in_log, self.now_ms) == [SourceSees()]
        while is_trusted and self.now_ms <= WARY_MS + WARY_LOOKS * MISSING_MS:
            assert self.look(*self.in_log.values()) == []

    def look(self, *seen: SeenDomain, step_ms: int = MISSING_MS, **fields: Any) -> list[Observation]:
        """One look that shows these, and what there is to tell then."""
        self.now_ms += step_ms
        self.polling.saw(msgspec.structs.replace(Look(domains=picture(*seen)), **fields), self.now_ms)
        return self.polling.news(self.now_ms)

    def fail(self, *, step_ms: int = MISSING_MS) -> list[Observation]:
        """No answer."""
        self.polling.asks(self.now_ms)
        self.now_ms += step_ms
        self.polling.failed("it is away", self.now_ms)
        return self.polling.news(self.now_ms)


def test_what_is_there_is_believed_at_once() -> None:
    """A domain, what it uses, another name, another incarnation: one look is enough; equal looks tell nothing."""
    course = Course()
    assert course.look(domain(1, HAS_GPU)) == [
        DomainSeen(domain(1).domain),
        DeviceUsed(KEYS[1], GPU, "attached"),
    ]
    assert course.look(domain(1, HAS_GPU)) == []
    renamed = domain(1, HAS_GPU, name="db")
    assert course.look(renamed) == [DomainSeen(renamed.domain)]
    again = domain(1, HAS_GPU, name="db", domid=2)
    assert course.look(again) == [DomainSeen(again.domain)]


def test_what_is_not_there_is_believed_when_it_was_missing_twice() -> None:
    """Two looks, and two seconds between them: a domain that is back by then has not gone."""
    course = Course(picture(domain(1)))
    assert course.look() == []
    assert course.look(domain(1)) == []
    assert course.look() == []
    assert course.look(step_ms=MISSING_MS - 1) == []
    assert course.look(step_ms=1) == [DomainGone(KEYS[1])]
    assert course.look() == []


def test_two_seconds_alone_are_not_enough() -> None:
    """However long ago the look before was, one that misses a domain is one."""
    course = Course(picture(domain(1)))
    assert course.look(step_ms=1_000_000) == []


def test_what_only_the_log_has_was_missing_in_no_look_yet() -> None:
    """However long ago the log was asked, the first look that misses a domain is the first one."""
    course = Course()
    course.polling.sync(picture(domain(1)), course.now_ms)
    assert course.look(step_ms=1_000_000) == []
    assert course.look() == [DomainGone(KEYS[1])]


def test_uses_end_before_domains_go() -> None:
    """So that the log can follow; a device that another has by now is taken from the one before it."""
    course = Course(picture(domain(1, HAS_GPU, CLAIMS_GPU)))
    assert course.look(domain(2, HAS_GPU)) == [
        DomainSeen(domain(2).domain),
        DeviceUsed(KEYS[2], GPU, "attached"),
    ]
    assert course.look(domain(2, HAS_GPU), held=frozenset({GPU})) == [
        DeviceUnused(KEYS[1], GPU, "attached"),
        DeviceUnused(KEYS[1], GPU, "configured"),
        DomainGone(KEYS[1]),
    ]


def test_a_dying_domain_has_its_devices() -> None:
    """One that is not listed, and whose device is held, is dying until that is free for two looks."""
    course = Course(picture(domain(1, HAS_GPU, CLAIMS_GPU)))
    look = partial(course.look, held=frozenset({GPU, NIC}))
    assert look() == []
    assert look() == [
        DeviceUnused(KEYS[1], GPU, "configured"),
        DomainSeen(domain(1, state="dying").domain),
    ]
    assert [look() for _ in range(50)] == [[]] * 50
    assert course.polling.watched == {GPU}
    assert course.look() == []
    assert look() == []
    assert course.look() == []
    assert course.look() == [DeviceUnused(KEYS[1], GPU, "attached"), DomainGone(KEYS[1])]


def test_what_cannot_be_told_is_held_for_a_time() -> None:
    """A source that does not know what is held: a domain that has gone is taken to hold its devices for a while."""
    course = Course(picture(domain(1, HAS_GPU)))
    told = [course.look(held=None) for _ in range(HELD_MS // MISSING_MS + 1)]
    assert told[1] == [DomainSeen(domain(1, state="dying").domain)]
    assert told[-1] == [DeviceUnused(KEYS[1], GPU, "attached"), DomainGone(KEYS[1])]
    assert not any(told[2:-1])


def test_a_detached_device_may_be_held() -> None:
    """It is taken from a domain that lives when it is free, too."""
    course = Course(picture(domain(1, HAS_GPU)))
    assert [course.look(domain(1), held=frozenset({GPU})) for _ in range(5)] == [[]] * 5
    assert course.look(domain(1)) == []
    assert course.look(domain(1)) == [DeviceUnused(KEYS[1], GPU, "attached")]


def test_one_that_is_listed_as_dying_keeps_what_it_had() -> None:
    """Its devices are not shown any more, and are not free."""
    course = Course(picture(domain(1, HAS_GPU)))
    dying = domain(1, state="dying")
    assert course.look(dying) == [DomainSeen(dying.domain)]
    assert [course.look(dying) for _ in range(50)] == [[]] * 50
    assert course.look() == []
    assert course.look() == [DeviceUnused(KEYS[1], GPU, "attached"), DomainGone(KEYS[1])]


def test_what_is_unclear_stays() -> None:
    """A domain that is listed, by name or number, and of which nothing else is known, has not gone and not changed."""
    course = Course(picture(domain(1, HAS_GPU), domain(2, domid=7)))
    look = partial(course.look, unclear_names=frozenset({"vm1"}), unclear_domids={7: ""})
    assert [look() for _ in range(10)] == [[]] * 10
    told = course.look(unclear_names=frozenset({"vm1"}), unclear_domids={7: "dying"})
    assert told == [DomainSeen(domain(2, domid=7, state="dying").domain)]


def test_no_answer_tells_nothing_but_that() -> None:
    """Nothing goes; after a time it is told that nothing is seen, once; and once that it is, behind what differs."""
    course = Course(picture(domain(1)))
    told = [course.fail() for _ in range(limits.BLIND_MS // MISSING_MS + 20)]
    assert [each for each in told if each] == [[SourceBlind("it is away")]]
    assert told[limits.BLIND_MS // MISSING_MS] == [SourceBlind("it is away")]
    assert course.look(domain(1), domain(2)) == [DomainSeen(domain(2).domain), SourceSees()]


def test_a_list_that_shrinks_behind_a_restart_is_not_believed_at_once() -> None:
    """After silence, however short, and under another generation: several looks and seconds more."""
    for generation, is_silent in (("", True), ("2", False)):
        course = Course(picture(domain(1, HAS_GPU)))
        if is_silent:
            assert course.fail() == []
        began_ms = course.now_ms
        looks = 0
        while course.look(generation=generation) == []:
            looks += 1
        assert looks >= WARY_LOOKS - 1
        assert course.now_ms - began_ms >= WARY_MS


def test_a_domain_that_is_back_after_a_restart_has_not_gone() -> None:
    """An empty list that fills again by and by invents nothing."""
    seen = [domain(1, HAS_GPU), domain(2)]
    course = Course(picture(*seen))
    course.fail()
    told = [course.look(generation="2") for _ in range(2)]
    told += [course.look(seen[0], generation="2")]
    told += [course.look(*seen, generation="2") for _ in range(10)]
    assert not any(told)


def test_a_new_run_does_not_believe_its_first_look() -> None:
    """What only the log has was there before: whether it is gone must be seen as often as behind a restart."""
    course = Course(is_trusted=False)
    assert course.polling.sync(picture(domain(1, HAS_GPU)), course.now_ms) == [SourceSees()]
    told = [course.look() for _ in range(WARY_LOOKS - 2)]
    assert not any(told)
    while not (last := course.look()):
        pass
    assert last == [DeviceUnused(KEYS[1], GPU, "attached"), DomainGone(KEYS[1])]


def test_a_run_that_never_saw_anything() -> None:
    """It says at once that nothing is seen, and leaves alone what the log has; then it sees, and says that."""
    polling = Polling()
    in_log = picture(domain(1))
    assert polling.sync(in_log, 0) == [SourceBlind("it has not answered yet")]
    assert polling.news(1) == []
    polling.saw(Look(domains=in_log), 2)
    assert polling.news(2) == [SourceSees()]


def test_what_the_log_has_is_missing_from_the_first_look_on() -> None:
    """However long a new run waits for its first look: only then it begins to count how long a device may be held."""
    polling = Polling()
    polling.sync(picture(domain(1, HAS_GPU)), 0)
    now_ms = 2 * HELD_MS
    for _ in range(2 * WARY_LOOKS):
        now_ms += WARY_MS // WARY_LOOKS
        polling.saw(Look(domains={}, held=None), now_ms)
        assert DeviceUnused(KEYS[1], GPU, "attached") not in polling.news(now_ms)
    polling.saw(Look(domains={}, held=None), now_ms + HELD_MS)
    assert DeviceUnused(KEYS[1], GPU, "attached") in polling.news(now_ms + HELD_MS)


def test_asked_for_a_report_again() -> None:
    """All that the log lacks is told anew, also that nothing is seen, or that something is again."""
    course = Course()
    course.look(domain(1))
    assert course.polling.sync({}, course.now_ms) == [DomainSeen(domain(1).domain), SourceSees()]
    for _ in range(20):
        course.fail()
    told = course.polling.sync({}, course.now_ms)
    assert told == [DomainSeen(domain(1).domain), SourceBlind("it is away")]
    assert course.look(domain(1)) == [SourceSees()]
    # That may have been lost on its way: the log would take the source for blind until it is so the next time.
    assert course.polling.sync(picture(domain(1)), course.now_ms) == [SourceSees()]


def test_what_the_log_would_not_take_is_made_so_that_it_does() -> None:
    """One domain that cannot be told would keep all others from being told, too."""
    course = Course()
    odd = domain(1, name="a\nb" + "x" * 999, state="odd", domid=2**32 - 1, memory_bytes=-5, vcpus=-1, kind="k" * 99)
    (told,) = course.look(odd)
    assert isinstance(told, DomainSeen)
    assert told.domain.name.startswith("a?bxxx")
    assert len(told.domain.name) == limits.DOMAIN_NAME_CHARS_MAX
    assert (told.domain.state, told.domain.domid, told.domain.memory_bytes, told.domain.vcpus) == ("unknown", -1, 0, 0)


def test_bounds() -> None:
    """More domains, and more uses of one, than the log takes are not told; those that have something come first."""
    course = Course()
    claims = [Use(f"pci/{number:04x}:00:00.0", "configured") for number in range(limits.USES_PER_DOMAIN_MAX)]
    told = course.look(domain(1, *claims, Use("usb-port/1-1", "attached")))
    assert len(told) == 1 + limits.USES_PER_DOMAIN_MAX
    assert DeviceUsed(KEYS[1], "usb-port/1-1", "attached") in told
    many = []
    for number in range(limits.DOMAINS_PER_HOST_MAX + 5):
        key = DomainKey(f"xen/00000000-0000-4000-9000-{number:012x}")
        many.append(SeenDomain(DomainDescription(key=key, name="x", domid=number, state="running")))
    assert len(Course().look(*many)) == limits.DOMAINS_PER_HOST_MAX


def test_how_often_it_looks() -> None:
    """Often while something changes or is missing, seldom at rest, later the longer a look takes; and out of step."""
    course = Course(picture(domain(1)))
    polling = course.polling
    assert polling.pause_ms(10, 500) == limits.POLL_MS_MAX
    assert polling.pause_ms(10_000, 500) == 40_000
    assert polling.pause_ms(10, 0) < limits.POLL_MS_MAX < polling.pause_ms(10, 999)
    course.look(domain(1, memory_bytes=5))
    assert polling.pause_ms(10, 500) == limits.POLL_MS_MAX, "a balloon is no reason to look often"
    course.look(domain(1, name="db"))
    pauses = []
    for _ in range(6):
        pauses.append(polling.pause_ms(10, 500))
        course.look(domain(1, name="db"))
    assert pauses == [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]
    course.look()
    assert polling.pause_ms(10, 500) == limits.POLL_MS_MIN
    course.look(domain(1, name="db"))
    polling.stir()
    assert polling.pause_ms(10, 500) == limits.POLL_MS_MIN
    failing = []
    for _ in range(5):
        course.fail()
        failing.append(polling.pause_ms(limits.POLL_TIMEOUT_MS, 500))
    assert failing == [1_000, 2_000, 4_000, 5_000, 5_000]


# --- any course -----------------------------------------------------------------------------------------------------

WORDS = [GPU, NIC, "usb-port/1-1"]
uses = st.lists(st.builds(Use, st.sampled_from(WORDS), st.sampled_from(["attached", "configured"])), max_size=4)
some_domain = st.builds(
    lambda number, uses, domid, state: domain(number, *set(uses), domid=domid, state=state),
    st.integers(0, 3), uses, st.integers(-1, 3), st.sampled_from(["running", "paused", "dying", "halted"]),
)  # fmt: skip
steps = st.lists(
    st.one_of(
        st.just("fail"),
        st.just("lose"),
        st.builds(
            lambda seen, held, unclear, generation: Look(
                domains=picture(*seen), held=held, unclear_names=unclear, generation=generation
            ),
            st.lists(some_domain, max_size=4, unique_by=lambda seen: seen.domain.key),
            st.one_of(st.none(), st.frozensets(st.sampled_from(WORDS))),
            st.frozensets(st.sampled_from(["vm0", "vm1", "vm2"]), max_size=1),
            st.sampled_from(["a", "a", "a", "b"]),
        ),
    ),
    max_size=25,
)


def followed(log: DomainPicture, told: Iterable[Observation]) -> DomainPicture:
    """What the log has behind this; each word must follow from those before it."""
    log = dict(log)
    for each in told:
        match each:
            case DomainSeen(domain=description):
                before = log.get(description.key)
                log[description.key] = SeenDomain(description, before.uses if before else ())
            case DomainGone(key=key):
                assert log.pop(key).uses == ()
            case DeviceUsed(domain=key, device=device, use=use):
                assert Use(device, use) not in log[key].uses
                log[key] = SeenDomain(log[key].domain, tuple(sorted((*log[key].uses, Use(device, use)))))
            case DeviceUnused(domain=key, device=device, use=use):
                assert Use(device, use) in log[key].uses
                left = tuple(each for each in log[key].uses if each != Use(device, use))
                log[key] = SeenDomain(log[key].domain, left)
    return log


def judge(look: Look, told: list[Observation], log: DomainPicture, listed: list[set[DomainKey]]) -> None:
    """What was told behind this look; `log` has it by now. `listed`: what the looks up to this one listed."""
    for key, shown in look.domains.items():
        assert log[key].domain == shown.domain
        assert set(shown.uses) <= set(log[key].uses)
    gone = {each.key for each in told if isinstance(each, DomainGone)}
    assert not any(gone & each for each in listed[-LOOKS:])
    has = {use.device for each in look.domains.values() for use in each.uses if use.use == "attached"}
    for each in told:
        if isinstance(each, DeviceUnused) and each.use == "attached" and look.held is not None:
            assert each.device not in look.held - has


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.integers(300, 5_000))
def test_any_course(steps: list[object], step_ms: int) -> None:
    """The log can follow; it has all that a look shows; nothing goes that one of the last two looks showed.

    No device goes that is held. A report that was lost is made good. At rest the log has what is there.
    """
    polling, now_ms = Polling(), 0
    log: DomainPicture = {}
    log = followed(log, polling.sync(log, now_ms))
    looks: list[set[DomainKey]] = []
    for step in steps:
        now_ms += step_ms
        polling.asks(now_ms)
        if step == "lose":
            polling.news(now_ms)
            log = followed(log, polling.sync(log, now_ms))
        elif isinstance(step, Look):
            polling.saw(step, now_ms)
            told = polling.news(now_ms)
            note(f"{step} led to {told}")
            unclear = {key for key in log if log[key].domain.name in step.unclear_names}
            looks.append(unclear | step.domains.keys())
            log = followed(log, told)
            judge(step, told, log, looks)
        else:
            polling.failed("away", now_ms)
            assert followed(log, polling.news(now_ms)) == log
    last = picture(domain(1, HAS_GPU, domid=9), domain(2, state="halted", domid=-1))
    for _ in range(WARY_LOOKS + LOOKS + (WARY_MS + MISSING_MS + HELD_MS) // step_ms + 2):
        now_ms += step_ms
        polling.saw(Look(domains=last, generation="a"), now_ms)
        log = followed(log, polling.news(now_ms))
    assert log == last


def test_differences_lead_from_one_to_the_other() -> None:
    """In words of which each follows from those before it."""
    before = picture(domain(0, HAS_GPU), domain(1, CLAIMS_GPU))
    after = picture(domain(1, HAS_GPU, name="other"), domain(2, Use(NIC, "attached")))
    assert followed(before, differences(before, after)) == after


def test_a_name_that_the_log_cannot_have_is_the_same_name_where_the_domain_is_unclear() -> None:
    """It is listed under its own name, and known under what the log takes of that: it is there."""
    for name in ("x" * (limits.DOMAIN_NAME_CHARS_MAX + 1), "a\tb"):
        course = Course()
        course.look(domain(1, HAS_GPU, name=name))
        for _ in range(2 * LOOKS):
            assert course.look(unclear_names=frozenset({name})) == []


def test_what_a_domain_has_is_told_before_what_it_claims() -> None:
    """Only what it has keeps a device from being leased: claims make room for that, whichever was there first."""
    words = [f"pci/0000:{bus:02x}:{slot:02x}.0" for bus in range(10) for slot in range(20)]
    claims, has = [Use(word, "configured") for word in words], [Use(word, "attached") for word in words]
    course = Course()
    log = followed({}, course.look(domain(1, *claims, domid=-1, state="halted")))
    for _ in range(3):
        log = followed(log, course.look(domain(1, *claims, *has)))
        assert set(has) < set(log[KEYS[1]].uses)
        assert len(log[KEYS[1]].uses) == limits.USES_PER_DOMAIN_MAX
