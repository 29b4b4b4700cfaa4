"""What the answers of a registry mean: an error that names host, thing, answer and remedy.

Error documents are those of the OCI distribution specification, "Error Codes". What a server says is shown
on one line, cut short, and without the secrets that it was sent.
"""

import email.utils
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.client import HTTPMessage

from lazyfs.errors import BadInputError, LazyfsError, LimitError, NotFoundError, StoreError
from lazyfs.formats.strict_json import load, plain, short
from lazyfs.stores.registry.connection import Response
from lazyfs.stores.registry.wire import ExchangeError

MAX_ERROR_BODY = 64 << 10
_MAX_SHOWN = 200
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class TemporaryError(Exception):
    """``error`` may not come again: try once more, ``after`` seconds from now if the server said when."""

    def __init__(self, error: StoreError, after: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


def broken(where: str, host: object, error: ExchangeError) -> LazyfsError | TemporaryError:
    """What an exchange that came to no end means.

    ``where`` is the thing and the store it was asked of, ``host`` the server if the error does not know better.
    """
    hint = error.hint.replace("HOST", str(host)) or "check the network and the registry, and try again"
    failure = StoreError(f"{where}: {error.at or host}: {error.reason}", hint=hint)
    return failure if error.final else TemporaryError(failure)


def refused(
    where: str, response: Response, hint: str, secrets: Iterable[str] = ()
) -> LazyfsError | TemporaryError:
    """What an answer that is no success means; ``hint`` is what helps against 401 and 403."""
    status = response.status
    said = _said(response, secrets)
    message = f"{where}: {response.origin} answered {status} {_REASONS.get(status, '')}".rstrip() + (
        said and f" ({said})"
    )
    if status in (401, 403):
        return StoreError(message, hint=hint)
    if status in (404, 410):
        return NotFoundError(
            message, hint="check the name; `skopeo inspect` or `lazyfs inspect` shows what is there"
        )
    if status == 413:
        return StoreError(
            message, hint="the registry, or a proxy before it, limits uploads: raise that limit"
        )
    if status in _TEMPORARY:
        after = retry_after(response.headers)
        wait = f"it asks to wait {after:.0f} s" if after else "try again later"
        return TemporaryError(StoreError(message, hint=f"{wait}, and ask who runs the registry"), after)
    return StoreError(message, hint="the registry does not take what was asked of it: see its log")


def retry_after(headers: HTTPMessage) -> float | None:
    """Seconds to wait (RFC 9110, section 10.2.3), or None when the server does not say."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _said(response: Response, secrets: Iterable[str]) -> str:
    """The codes and messages of an error document, or nothing when the answer has none."""
    try:
        data = response.read(MAX_ERROR_BODY + 1)
        errors = load(data, "answer", MAX_ERROR_BODY).children("errors")
        texts = [_one_error(error.values) for error in errors[:3]]
    except (ExchangeError, BadInputError, LimitError):
        return ""
    text = "; ".join(text for text in texts if text)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = text[:_MAX_SHOWN]
    return text if text.isprintable() else short(text, _MAX_SHOWN)


def _one_error(values: dict[str, object]) -> str:
    parts = [str(values[key]) for key in ("code", "message") if values.get(key)]
    detail = values.get("detail")
    if isinstance(detail, str | int):
        parts.append(str(detail))
    elif isinstance(detail, dict):
        parts += [f"{plain(str(key))} {value}" for key, value in detail.items() if isinstance(value, str)]
    return ": ".join(parts)
