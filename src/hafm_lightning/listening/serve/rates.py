"""Rate limits: each visitor has a bucket of tokens that refills with time."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hafm_lightning.listening.serve.settings import Rate

MOST_BUCKETS = 50_000
"""Visitors that are remembered; the ones seen longest ago are forgotten first."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class RateLimit:
    """Buckets of one rate, used from the event loop alone.

    Args:
        rate: Of each visitor.
        clock: Seconds, never going back.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, visitor: str) -> float:
        """Seconds until the visitor may come again; 0 if a token is there."""
        bucket = self._filled(visitor)
        return 0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) * 60 / self._rate.per_minute

    def take(self, visitor: str) -> float:
        """Take a token if there is one; seconds to wait otherwise, and 0 if it was taken."""
        wait_s = self.wait_s(visitor)
        if not wait_s:
            self._buckets[visitor].tokens -= 1
        return wait_s

    def _filled(self, visitor: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(visitor, _Bucket(self._rate.burst, now))
        self._buckets.move_to_end(visitor)
        gained = (now - bucket.at) * self._rate.per_minute / 60
        bucket.tokens, bucket.at = min(self._rate.burst, bucket.tokens + gained), now
        while len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return bucket


def visitor_of(address: str) -> str:
    """The name under which an address is counted: an IPv6 network of 64 bits is one visitor."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    if parsed.version == 4:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
