"""How much one host may report: a source gone wild takes nobody else's room.

What is dropped here is not lost: the next message of that source shows the gap, and it is asked to report all again.
"""

import time

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import HostName, device_id
from leasehold.events.inputs import DeviceSeen, Observed
from leasehold.projections.state import State
from leasehold.services.allocator.buckets import Buckets


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
