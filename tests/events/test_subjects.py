"""Subjects say who speaks, read back as they were made, and cannot be made to say anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.errors import InvalidInputError
from leasehold.events.subjects import Subjects
from tests.events.strategies import HOSTILE_TEXTS

CLUSTERS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
PRINCIPALS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_@-]{0,62}", fullmatch=True)
TOKENS = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)


@given(CLUSTERS, PRINCIPALS, TOKENS)
def test_requests_read_back(cluster: str, principal: str, verb: str) -> None:
    """Principal and verb come back out of a request's subject, and a service of this cluster hears it."""
    subjects = Subjects(cluster)
    subject = subjects.request(principal, verb)
    assert subjects.parse_request(subject) == (principal, verb)
    assert matches(subjects.requests_all(verb), subject)


@given(CLUSTERS, HOSTS, TOKENS)
def test_reporters_read_back(cluster: str, host: str, agent: str) -> None:
    """Host and agent come back out of the subjects of observations and heartbeats."""
    subjects = Subjects(cluster)
    assert subjects.parse_reporter(subjects.observed(host, agent)) == (host, agent)
    assert subjects.parse_reporter(subjects.alive(host, agent)) == (host, agent)
    assert matches(subjects.observed_all, subjects.observed(host, agent))
    assert matches(subjects.alive_all, subjects.alive(host, agent))
    assert not matches(subjects.observed_all, subjects.alive(host, agent))
    assert subjects.ledger not in {subjects.observed(host, agent), subjects.alive(host, agent)}


@given(CLUSTERS, CLUSTERS, PRINCIPALS, TOKENS)
def test_clusters_do_not_hear_each_other(one: str, other: str, principal: str, verb: str) -> None:
    """A subject of another cluster is refused."""
    if one != other:
        with pytest.raises(InvalidInputError):
            Subjects(one).parse_request(Subjects(other).request(principal, verb))


@given(st.sampled_from(("request", "observed", "alive")), HOSTILE_TEXTS, HOSTILE_TEXTS)
def test_hostile_parts(kind: str, one: str, other: str) -> None:
    """Whatever stands for a name: the subject has five parts and no wildcard, or it is not made."""
    try:
        subject = getattr(Subjects("lab"), kind)(one, other)
    except InvalidInputError as error:
        assert error.field in {"principal", "verb", "host", "agent"}
    else:
        assert subject.count(".") == 4
        assert not set(subject) & set("*> \t\r\n")


@given(
    HOSTILE_TEXTS | st.lists(HOSTILE_TEXTS, min_size=2, max_size=2).map(lambda x: "leasehold.lab.req." + ".".join(x))
)
def test_hostile_subjects(subject: str) -> None:
    """Whatever arrives as a subject is read as what would make it again, or refused as invalid input."""
    subjects = Subjects("lab")
    try:
        principal, verb = subjects.parse_request(subject)
        assert subjects.request(principal, verb) == subject
    except InvalidInputError as error:
        assert error.field
    try:
        host, agent = subjects.parse_reporter(subject)
        assert subject in {subjects.observed(host, agent), subjects.alive(host, agent)}
    except InvalidInputError as error:
        assert error.field


@pytest.mark.parametrize(
    "subject",
    [
        "leasehold.lab.req.a",
        "leasehold.lab.req.a.lease.more",
        "leasehold.lab.req.*.lease",
        "leasehold.lab.req.a.>",
        "leasehold.lab.req..lease",
        "leasehold.lab.obs.a.lease",
        "Leasehold.lab.req.a.lease",
        "leasehold.lab2.req.a.lease",
        "",
    ],
)
def test_no_requests(subject: str) -> None:
    """Near misses are refused."""
    with pytest.raises(InvalidInputError):
        Subjects("lab").parse_request(subject)


@given(HOSTILE_TEXTS)
def test_hostile_clusters(cluster: str) -> None:
    """A cluster's name cannot widen the subjects either."""
    try:
        subject = Subjects(cluster).ledger
    except InvalidInputError as error:
        assert error.field == "cluster"
    else:
        assert subject.count(".") == 2
        assert not set(subject) & set("*> \t\r\n")


def matches(pattern: str, subject: str) -> bool:
    """Whether NATS delivers `subject` to a subscription to `pattern` (without `>`)."""
    wanted, parts = pattern.split("."), subject.split(".")
    return len(wanted) == len(parts) and all(want in ("*", part) for want, part in zip(wanted, parts, strict=True))
