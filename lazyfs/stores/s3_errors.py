"""What a server that speaks S3 answered, as errors of ours: what is wrong, who said so, what to do.

boto3 raises a tree of exceptions with the parsed answer; obstore a text in which the answer is quoted. Both
are reduced to a `Problem`. Nothing else of them goes into a message: an answer may quote what was signed.
"""

import re
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from obstore.exceptions import BaseError

from lazyfs.errors import LazyfsError, NotFoundError, StoreError
from lazyfs.formats.strict_json import plain

FAILURES = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    RecursionError,
    BaseError,
    FileNotFoundError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What boto3 and obstore raise when a request does not succeed; a RecursionError where a server sends boto3
from region to region without end, the last four where the XML of an answer is not as it must be: botocore looks at the
type of nothing, and at what is missing no more."""

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_STATUS = re.compile(r"status code: (\d{3})")
_EXPECTED = re.compile(r"expecting '([a-z0-9-]{1,40})'|expecting &#39;([a-z0-9-]{1,40})&#39;")

_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_CREDENTIALS = {
    "InvalidAccessKeyId": "the server does not know their access key",
    "SignatureDoesNotMatch": "their secret key is not the one of their access key",
    "ExpiredToken": "they have expired",
    "ExpiredTokenException": "they have expired",
    "RequestExpired": "they have expired, or the clock of this machine is wrong",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "TokenRefreshRequired": "they have expired",
    "InvalidToken": "their session token is not valid",
    "InvalidClientTokenId": "the server does not know their access key",
}
_REGIONS = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"}
)
_THROTTLED = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "TooManyRequests"})
_PASSING = _THROTTLED | {"InternalError", "RequestTimeout"}
_PASSING_STATUS = frozenset({429, 500, 502, 503, 504})
_NOT_S3 = "what is no answer of S3"
_HOW_TO_LOG_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; see `aws configure list`"


@dataclass(frozen=True, slots=True)
class Problem:
    """One failed request: ``code`` is that of S3, else the HTTP status as text, else empty: no answer came."""

    code: str
    status: int = 0
    region: str = ""

    @property
    def is_outside(self) -> bool:
        """The range that was asked for begins behind the object's end."""
        return self.code == "InvalidRange" or self.status == 416

    @property
    def is_vague(self) -> bool:
        """An answer without a reason, as there is to every HEAD."""
        return self.code == str(self.status)

    @property
    def may_be_credentials(self) -> bool:
        return self.code in _CREDENTIALS or self.status in (401, 403)

    @property
    def may_pass(self) -> bool:
        return not self.code or self.code in _PASSING or self.status in _PASSING_STATUS


@dataclass(frozen=True, slots=True)
class Scene:
    """Where it happened, for messages: ``credentials`` says where they came from, empty if there are none."""

    bucket: str
    host: str
    credentials: str


def problem_of(error: BaseException) -> Problem:
    if isinstance(error, ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        details = answer.get("Error", {})
        region = details.get("Region") or headers.get("x-amz-bucket-region") or ""
        return Problem(
            str(details.get("Code", status)), status, region or _expected(details.get("Message", ""))
        )
    if isinstance(error, ResponseParserError | LookupError):
        return Problem(_NOT_S3)
    if isinstance(error, BotoCoreError):
        return Problem("")
    if isinstance(error, RecursionError):
        return Problem("PermanentRedirect", 301)
    text = str(error).partition("Debug source:")[0]
    if "HTTP error:" in text:
        return Problem("")
    if "redirect without LOCATION" in text:
        return Problem("PermanentRedirect", 301)
    status, code, region = _STATUS.search(text), _CODE.search(text), _REGION.search(text)
    if status is None:
        return Problem("404" if isinstance(error, FileNotFoundError) else _NOT_S3)
    return Problem(
        code[1] if code else status[1], int(status[1]), _expected(text) or (region[1] if region else "")
    )


def error_of(error: BaseException, what: str, scene: Scene) -> LazyfsError:
    """The error to raise for ``error``; ``what`` names what was asked for."""
    problem = problem_of(error)
    at = f"{what}: {scene.host}"
    if problem.code == "NoSuchBucket":
        return NotFoundError(
            f"{what}: {scene.host} has no bucket {plain(scene.bucket)}",
            hint="make it, or check its name, the endpoint and the region",
        )
    if problem.code in _ABSENT:
        return NotFoundError(f"{what} is not there", hint="check the name, and copy the image there again")
    if problem.code in _CREDENTIALS:
        reason = _CREDENTIALS[problem.code]
        return StoreError(
            f"{at} refuses the credentials from {scene.credentials}: {reason}", hint=_HOW_TO_LOG_IN
        )
    if problem.code in _REGIONS:
        return StoreError(
            f"{at} says that the bucket is in another region{', ' if problem.region else ''}{problem.region}",
            hint=f"set AWS_REGION={problem.region or 'REGION'}",
        )
    if problem.status in (401, 403) and not scene.credentials:
        return StoreError(f"{at} wants credentials, and there are none", hint=_HOW_TO_LOG_IN)
    if problem.status in (401, 403):
        return StoreError(
            f"{at} does not allow it to the credentials from {scene.credentials}",
            hint=f"they need s3:ListBucket on {plain(scene.bucket)}, s3:GetObject, "
            "and for writing s3:PutObject, s3:AbortMultipartUpload and s3:DeleteObject",
        )
    if problem.code in _THROTTLED or problem.status in (429, 503):
        return StoreError(f"{at} asked to slow down until time was up", hint="try again later")
    if problem.code:
        return StoreError(f"{at} answered {problem.code}", hint="try again, or look into the server's log")
    return StoreError(f"{at} did not answer", hint="check the endpoint, the network and the proxy settings")


def _expected(text: str) -> str:
    match = _EXPECTED.search(text)
    return (match[1] or match[2]) if match else ""
