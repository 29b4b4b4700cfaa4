"""Proving who we are to one server of a registry: challenges, tokens, passwords.

Follows RFC 9110 (challenges), RFC 7617 (Basic) and distribution's token specification: a token is asked for by
GET with a password, or by POST as in OAuth 2 with an identity token. Tokens are renewed before they expire and
whenever one is refused; passwords are looked up anew each time.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlencode

from lazyfs.errors import BadInputError, LazyfsError, LimitError, StoreError
from lazyfs.formats.strict_json import load, short
from lazyfs.stores.registry.answers import TemporaryError, broken, refused
from lazyfs.stores.registry.connection import Origin, Response, split_url
from lazyfs.stores.registry.credentials import NO_CREDENTIALS, Credentials
from lazyfs.stores.registry.wire import Body, Deadline, ExchangeError

Send = Callable[[str, Origin, str, dict[str, str], Body, Deadline], Response]

_MAX_ANSWER = 1 << 20
_MAX_CHALLENGE = 8 << 10
_MAX_TOKEN = 32 << 10
_MAX_TOKENS = 16
_DEFAULT_LIFETIME = 60  # what the specification says of a token that says nothing
_MAX_LIFETIME = 86400
_MIN_SECRET = 6
"""Characters of a header's value: "***" for each "1" would hide what a server says."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|$)")
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server asks for: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    ends: float

    def __repr__(self) -> str:
        return f"_Token(ends={self.ends})"


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of WWW-Authenticate headers; what cannot be understood ends its header."""
    challenges: list[Challenge] = []
    for value in values:
        text, position = value[:_MAX_CHALLENGE], 0
        begun = False
        while position < len(text):
            if text[position] in " \t,":
                position += 1
            elif begun and (parameter := _PARAMETER.match(text, position)):
                quoted = re.sub(r"\\(.)", r"\1", parameter[2] or "")
                challenges[-1].parameters[parameter[1].lower()] = quoted or parameter[3] or ""
                position = parameter.end()
            elif scheme := _SCHEME.match(text, position):
                challenges.append(Challenge(scheme[1].lower(), {}))
                begun, position = True, scheme.end()
            else:
                break
    return challenges


def _covers(scope: str, other: str) -> bool:
    """Whether who has ``scope`` (``type:name:action,…``) has ``other`` too."""
    what, _, actions = scope.rpartition(":")
    same, _, wanted = other.rpartition(":")
    return what == same and set(wanted.split(",")) <= set(actions.split(","))


class Authorizer:
    """The Authorization headers for one server. Thread safe.

    ``_lock`` guards what is known; ``_renewing`` lets one thread at a time ask for a token, while those that
    have one go on.
    """

    def __init__(
        self,
        host: str,
        where: str,
        find: Callable[[], Credentials],
        send: Send,
        sent_along: Iterable[str] = (),
    ) -> None:
        """`sent_along` are values of headers of each request, which may be secrets too."""
        self._sent_along = tuple(value for value in sent_along if len(value) >= _MIN_SECRET)
        self._host = host
        self._where = where
        self._find = find
        self._send = send
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._basic: str | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._credentials = NO_CREDENTIALS
        self._identity: tuple[str, str] = ("", "")  # an identity token, and the one that came in its place

    def header(self, scopes: tuple[str, ...], origin: Origin, deadline: Deadline) -> str | None:
        """What to send along, or None as long as the server has not asked for anything."""
        with self._lock:
            token, challenge = self._tokens.get(scopes), self._challenge
            if token is not None and token.ends > time.monotonic():
                return token.header
            if challenge is None:
                return self._basic
        return self._renew(challenge, scopes, token.header if token else None, origin, deadline)

    def renew(
        self,
        challenges: list[Challenge],
        scopes: tuple[str, ...],
        used: str | None,
        origin: Origin,
        deadline: Deadline,
    ) -> bool:
        """Take up the challenges of a 401 to a request that carried ``used``.

        False when there is nothing more to show. Raises StoreError or TemporaryError when no token can be had.
        """
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        bearer = by_scheme.get("bearer")
        if bearer is not None and bearer.parameters.get("realm"):
            self._renew(bearer, scopes, used, origin, deadline)
            return True
        if "basic" in by_scheme:
            return self._renew_basic(used)
        return False

    def hint(self) -> str:
        """What helps when what was shown is not enough."""
        with self._lock:
            source = self._credentials.source
        login = f"`skopeo login {self._host}`"
        if not source:
            return f"no password for it was found: {login}, or name a file of them in REGISTRY_AUTH_FILE"
        return f"what {source} has for it is not enough: log in as somebody who may, {login}"

    def secrets(self) -> list[str]:
        """What must not be shown although a server repeats it."""
        with self._lock:
            found = self._credentials
            shown = [found.password, found.identity_token, found.registry_token, *self._identity]
            headers = [token.header for token in self._tokens.values()] + [self._basic or ""]
        headers.append(found.basic() if found.user else "")
        shown += [header.partition(" ")[2] for header in headers]
        return [*filter(None, shown), *self._sent_along]

    def _renew_basic(self, used: str | None) -> bool:
        credentials = self._find()
        with self._lock:
            self._credentials = credentials
            self._challenge = None
            if not credentials.user:
                return False
            self._basic = credentials.basic()
            return self._basic != used

    def _renew(
        self,
        challenge: Challenge,
        scopes: tuple[str, ...],
        used: str | None,
        origin: Origin,
        deadline: Deadline,
    ) -> str:
        if not self._renewing.acquire(timeout=deadline.next_wait()):
            raise ExchangeError("no token could be had in time")
        try:
            with self._lock:
                known = self._tokens.get(scopes)
            if known is not None and known.header != used and known.ends > time.monotonic():
                return known.header  # another thread was here first
            token = self._fetch(challenge, scopes, origin, deadline)
            with self._lock:
                self._challenge = challenge
                while len(self._tokens) >= _MAX_TOKENS:
                    self._tokens.pop(next(iter(self._tokens)))
                self._tokens[scopes] = token
            return token.header
        finally:
            self._renewing.release()

    def _fetch(
        self, challenge: Challenge, scopes: tuple[str, ...], origin: Origin, deadline: Deadline
    ) -> _Token:
        credentials = self._find()
        with self._lock:
            self._credentials = credentials
        if credentials.registry_token:
            return _Token(f"Bearer {credentials.registry_token}", time.monotonic() + _MAX_LIFETIME)
        began = time.monotonic()
        where = f"{self._where}: asking for a token"
        try:
            realm, target = split_url(challenge.parameters["realm"])
            if realm.scheme == "http" and origin.scheme == "https":
                raise StoreError(
                    f"{where}: {self._host} wants the password sent to {realm}, without TLS",
                    hint="this is no fault of yours: tell who runs the registry",
                )
            with self._ask(realm, target, challenge, scopes, credentials, deadline) as response:
                if response.status != 200:
                    raise self._refusal(where, response)
                data = response.read_all(_MAX_ANSWER)
        except ExchangeError as error:
            raise broken(where, short(challenge.parameters["realm"].partition("?")[0]), error) from None
        return self._read(data, f"{where}: {realm}", credentials, began)

    def _ask(
        self,
        realm: Origin,
        target: str,
        challenge: Challenge,
        scopes: tuple[str, ...],
        credentials: Credentials,
        deadline: Deadline,
    ) -> Response:
        more = challenge.parameters.get("scope", "").split()
        asked = [*scopes, *(scope for scope in more if not any(_covers(own, scope) for own in scopes))]
        service = challenge.parameters.get("service", "")
        if credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": self._newest(credentials.identity_token)}
            form |= {"service": service, "scope": " ".join(asked), "client_id": "lazyfs"}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._send("POST", realm, target, headers, urlencode(form).encode(), deadline)
        query = urlencode(
            [*([("service", service)] if service else []), *(("scope", scope) for scope in asked)]
        )
        headers = {"Authorization": credentials.basic()} if credentials.user else {}
        join = "&" if "?" in target else "?"
        return self._send("GET", realm, f"{target}{join}{query}", headers, None, deadline)

    def _refusal(self, where: str, response: Response) -> LazyfsError | TemporaryError:
        error = refused(where, response, self.hint(), self.secrets())
        if isinstance(error, TemporaryError | StoreError):
            return error
        return StoreError(
            error.message, hint="the registry names a token server that gives none: tell who runs it"
        )

    def _newest(self, identity: str) -> str:
        with self._lock:
            original, newer = self._identity
        return newer if original == identity else identity

    def _read(self, data: bytes, where: str, credentials: Credentials, began: float) -> _Token:
        try:
            fields = load(data, "its answer", _MAX_ANSWER)
            token = fields.text("token") or fields.text("access_token")
            identity = fields.text("refresh_token")
            seconds = fields.values.get("expires_in")
        except (BadInputError, LimitError) as error:
            raise StoreError(f"{where}: {error.message}", hint="tell who runs the registry") from None
        if not _TOKEN.fullmatch(token) or len(token) > _MAX_TOKEN:
            raise StoreError(f"{where} gave no token that can be used", hint="tell who runs the registry")
        if identity and credentials.identity_token:
            with self._lock:
                self._identity = (credentials.identity_token, identity)
        lifetime = seconds if isinstance(seconds, int | float) and seconds > 0 else _DEFAULT_LIFETIME
        lifetime = min(lifetime, _MAX_LIFETIME)
        # A little less, so that it does not expire on its way.
        return _Token(f"Bearer {token}", began + lifetime - min(10, lifetime / 5))
