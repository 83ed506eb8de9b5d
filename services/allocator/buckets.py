"""How much of something each of many may do: tokens that time fills up."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Buckets(Generic[Key]):
    """One bucket for each key; each starts full."""

    def __init__(self, *, rate_per_s: float, burst: float, keys_max: int) -> None:
        """`burst`: tokens in a full bucket. When more than `keys_max` would be remembered, all are forgotten."""
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._keys_max = keys_max
        self._buckets: dict[Key, tuple[float, float]] = {}

    def take(self, key: Key, now_s: float, tokens: float = 1) -> bool:
        """Take `tokens` out of the key's bucket; `False`, and nothing taken, if there are not as many."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._keys_max:
                self._buckets.clear()
            left = self._burst
        else:
            left = min(self._burst, bucket[0] + (now_s - bucket[1]) * self._rate_per_s)
        enough = left >= tokens
        self._buckets[key] = (left - tokens if enough else left, now_s)
        return enough

    def __len__(self) -> int:
        return len(self._buckets)
