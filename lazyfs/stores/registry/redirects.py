"""Where blobs were redirected to, for as long as that holds.

A registry that keeps its blobs elsewhere answers each GET with an address that is good for some minutes. The
ranged reads of a node go there at once instead of asking again each time.
"""

import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from urllib.parse import parse_qsl

from lazyfs.stores.registry.connection import Origin

_MAX_KEPT = 1024
_DEFAULT_SECONDS = 300.0
_MAX_SECONDS = 3600.0
_SHARE = 0.8
"""Of its life in which an address is used: clocks differ, and a read that begins in time must end in time."""
_MIN_SECRET = 12
"""Characters of a signature; what is shorter is a date or a number."""
_MAX_AGE = re.compile(r"max-age=\"?([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Address:
    """A place to read from; the target of a signed one is a secret for as long as it lives."""

    origin: Origin
    target: str

    def __repr__(self) -> str:
        return f"Address({self.origin})"

    def secrets(self) -> list[str]:
        """What must not be shown although a server repeats it."""
        query = self.target.partition("?")[2]
        raw = [part.partition("=")[2] for part in query.split("&")]
        plain = [value for _, value in parse_qsl(query)]
        return [value for value in (query, *raw, *plain) if len(value) >= _MIN_SECRET]


class Redirects:
    """Addresses by what was asked for, the least recently used go first. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, tuple[Address, float]] = OrderedDict()

    def get(self, key: object) -> Address | None:
        with self._lock:
            address, ends = self._kept.get(key, (None, 0.0))
            if address is None:
                return None
            if ends <= time.monotonic():
                del self._kept[key]
                return None
            self._kept.move_to_end(key)
            return address

    def keep(self, key: object, address: Address, seconds: float) -> None:
        if seconds <= 0:
            return
        with self._lock:
            self._kept[key] = address, time.monotonic() + seconds
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)

    def forget(self, key: object) -> None:
        with self._lock:
            self._kept.pop(key, None)


def lifetime(target: str, headers: HTTPMessage) -> float:
    """For how many seconds an address may be used, by what it says itself and what came with the redirect."""
    control = headers.get("Cache-Control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    found = [_signed(target)]
    age = _MAX_AGE.search(control)
    if age:
        found.append(float(age[1]))
    known = [seconds for seconds in found if seconds is not None]
    return min(_SHARE * min(known), _MAX_SECONDS) if known else _DEFAULT_SECONDS


def _signed(target: str) -> float | None:
    """How long the signature in an address holds: S3 and Google (a span), CloudFront (a time), Azure (a date)."""
    query = {name.lower(): value for name, value in parse_qsl(target.partition("?")[2])}
    for name in ("x-amz-expires", "x-goog-expires"):
        if query.get(name, "").isdecimal():
            return _remaining(query, name.removesuffix("expires") + "date", int(query[name][:9]))
    if query.get("expires", "").isdecimal():
        return int(query["expires"][:12]) - time.time()
    ends = _date(query.get("se", ""))
    return None if ends is None else ends - time.time()


def _remaining(query: dict[str, str], date: str, seconds: int) -> float:
    # A cached redirect may have been signed long ago; a clock that is off must not lengthen it.
    begun = _date(query.get(date, ""))
    return seconds if begun is None else seconds - max(0.0, time.time() - begun)


def _date(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text) if "," not in text else parsedate_to_datetime(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
