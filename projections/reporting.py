"""How an agent reports: the protocol of a source, without its wires.

A run begins with `source_starts`. Only when the log has that does the agent compare what the log knows with what it
sees, and report the differences; else late words of the run before could undo what the new one said. After that it
reports what changes. What was told is remembered here, so equal looks send nothing.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from leasehold.events import codec, limits
from leasehold.events.answers import Heard
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import (
    DeviceGone,
    DeviceSeen,
    Observation,
    Observed,
    PictureComplete,
    SourceStarts,
    SourceStops,
    StillHere,
)

Picture = dict[DeviceKey, DeviceDescription]
"""All devices of a host that are there."""
Hows = Mapping[DeviceKey, Sighting]
"""How it was learnt what differs; a device that it does not name is told without."""
_UNSAID: Final[Hows] = {}


class Need(Enum):
    """What a source must do next."""

    WAIT = "wait"
    """What was sent is not in the log yet."""
    SYNC = "sync"
    """Ask what the log knows, then report what differs."""
    NOTHING = "nothing"
    SUPERSEDED = "superseded"
    """A newer run speaks for this agent."""
    AGAIN = "again"
    """The log does not know this run: `source_starts` was lost."""


class Reporter:
    """One run of an agent on a host. `run` must be larger than that of every run before."""

    def __init__(self, host: HostName, agent: str, run: int, *, manages: bool = False) -> None:
        self.host = host
        self.agent = agent
        self.run = run
        self.counter = 0
        self._manages = manages
        self._told: Picture = {}
        self._is_synced = False

    @property
    def is_synced(self) -> bool:
        """Whether differences may be reported."""
        return self._is_synced

    def starts(self) -> Observed:
        """The first message; sending it again is harmless."""
        return self._message(0, (SourceStarts(self._manages),))

    def stops(self) -> Observed:
        """The last message of a run that ends in good order."""
        self._is_synced = False
        return self._next((SourceStops(),))

    def need(self, heard: Heard) -> Need:
        """What the log's answer to a heartbeat calls for."""
        if heard.run > self.run or (heard.run == self.run and heard.counter > self.counter):
            # What is numbered below what the log counts is taken for old: nobody hears us under this run any more.
            return Need.SUPERSEDED
        if heard.run < self.run:
            return Need.AGAIN
        if heard.counter < self.counter:
            return Need.WAIT
        return Need.NOTHING if heard.complete and not heard.wants_report and self._is_synced else Need.SYNC

    @property
    def told(self) -> Picture:
        """The devices that are there, as told so far. Not to be changed."""
        return self._told

    def synced(
        self, in_log: Picture, picture: Picture, hows: Hows = _UNSAID, also: Sequence[Observation] = ()
    ) -> list[Observed]:
        """Begin to report: messages that lead from what the log knows to what is seen, closed by `picture_complete`.

        `hows`: how it was learnt what differs; `also`: what to tell behind the devices.
        """
        self._told = dict(in_log)
        self._is_synced = True
        return self._report(picture, hows, (*also, PictureComplete(since=self.counter + 1)))

    def look(self, picture: Picture, hows: Hows = _UNSAID, also: Sequence[Observation] = ()) -> list[Observed]:
        """Messages for what has changed since the last look; none if nothing has. Arguments as in `synced`."""
        assert self._is_synced
        return self._report(picture, hows, also)

    def tell(self, observations: Sequence[Observation]) -> list[Observed]:
        """Messages for what is no device's being there: what an agent has done, say."""
        assert self._is_synced
        return [self._next(batch) for batch in _batches(observations)]

    def assure(self) -> Observed:
        """A message without news: behind a lost one, it makes the gap seen."""
        return self._next((StillHere(),))

    def _report(self, picture: Picture, hows: Hows, behind: Sequence[Observation]) -> list[Observed]:
        observations = [*differences(self._told, picture, hows), *behind]
        self._told = dict(picture)
        return [self._next(batch) for batch in _batches(observations)]

    def _next(self, observations: tuple[Observation, ...]) -> Observed:
        self.counter += 1
        return self._message(self.counter, observations)

    def _message(self, counter: int, observations: tuple[Observation, ...]) -> Observed:
        return Observed(
            host=self.host, agent=self.agent, run=self.run, counter=counter, observations=observations
        )


def differences(before: Picture, after: Picture, hows: Hows = _UNSAID) -> list[Observation]:
    """What leads from one picture to the other: what went first, then what came or changed, each in order of keys."""
    gone: list[Observation] = [DeviceGone(key, hows.get(key)) for key in sorted(before.keys() - after.keys())]
    seen = [DeviceSeen(after[key], hows.get(key)) for key in sorted(after) if before.get(key) != after[key]]
    return [*gone, *seen]


def _batches(observations: Sequence[Observation]) -> list[tuple[Observation, ...]]:
    """Cut to what one message may hold, in number and in bytes."""
    batches: list[tuple[Observation, ...]] = []
    batch: list[Observation] = []
    size = 0
    for observation in observations:
        length = len(codec.encode(observation)) + 1
        is_full = len(batch) >= limits.OBSERVATIONS_PER_MESSAGE_MAX or size + length > limits.OBSERVED_BYTES_MAX - 1_024
        if batch and is_full:
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(observation)
        size += length
    if batch:
        batches.append(tuple(batch))
    return batches
