"""What may be tried again on an object store, how often, and what a user is told when it ends.

Only here are requests repeated: botocore's and s3fs' own retries are off, since three layers of five tries are 125.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import tenacity

from shards.errors import StorageFullError, VillaError

T = TypeVar("T")
SECONDS_VARIABLE = "VILLA_S3_RETRY_SECONDS"
LEAST_TRIES = 3  # however long each takes

# A name only: botocore and aiohttp are imported by s3fs, and only where an s3:// path is used.
_SPOILT = {"FlexibleChecksumError", "ResponseStreamingError", "IncompleteReadError", "ResponseParserError"}
_TRANSIENT_TYPES = {"HTTPClientError", "ClientPayloadError", "ClientConnectionError", "ConnectionError"} | _SPOILT
_TRANSIENT_TYPES |= {"EndpointConnectionError", "ReadTimeoutError", "FSTimeoutError"}
_CERTAIN_TYPES = {"SSLError", "InvalidProxiesConfigError"}
_TRANSIENT_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "TooManyRequests"),
    *("InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "OperationAborted"),
    *(
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",
        "PriorRequestNotComplete",
    ),
}
_NAMES_SECRET = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_KEY|ACCESS_KEY(_ID)?)$|SECRET_ACCESS"
)
SHORTEST_SECRET = 8  # characters; a shorter one may be a word
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


class ShortRead(Exception):
    """Fewer or other bytes came than the response promised."""


@dataclass(frozen=True)
class Budget:
    """Tries of one request: exponential waits with full jitter up to `longest` seconds, ended by either limit.

    seconds: counted from the first try, which three tries may run over by their own time limits. unreachable: the same while
    nothing in this process has ever answered, when a wrong address is likelier than an outage.
    """

    tries: int = 30
    seconds: float = 120.0
    unreachable: float = 15.0
    first: float = 0.2
    longest: float = 10.0


def default_budget() -> Budget:
    """Raises: VillaError when VILLA_S3_RETRY_SECONDS is not a number of seconds."""
    text = os.environ.get(SECONDS_VARIABLE, "")
    if not text:
        return Budget()
    try:
        seconds = float(text)
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise VillaError(
            f"{SECONDS_VARIABLE}={text!r} is not a number of seconds; set it to one, such as 120"
        ) from None
    return Budget(seconds=seconds, unreachable=min(seconds, Budget.unreachable))


@dataclass(frozen=True)
class Failure:
    """One failed request: S3's code and status (empty and 0 where no answer came), and a text without secrets."""

    code: str
    status: int
    text: str
    transient: bool
    region: str = ""  # of the bucket, where the answer names it


def failure_of(error: BaseException) -> Failure:
    """What went wrong, from the exceptions of s3fs, botocore and aiohttp."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict) and "Error" in response:
        code, meta = str(response["Error"].get("Code", "")), response.get("ResponseMetadata", {})
        status = int(meta.get("HTTPStatusCode", 0) or 0)
        region = str(meta.get("HTTPHeaders", {}).get("x-amz-bucket-region", "") or response["Error"].get("Region", ""))
        said = scrub(str(response["Error"].get("Message", "")))[:200]
        transient = code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS
        return Failure(code, status, f"{scrub(code)} ({status}{': ' + said if said else ''})", transient, region)
    names = {kind.__name__ for kind in type(error).__mro__}
    transient = bool(names & _TRANSIENT_TYPES) or isinstance(
        error, ShortRead | asyncio.TimeoutError | TimeoutError | ConnectionError
    )
    text = f"{type(error).__name__}: {scrub(str(error))[:300]}"
    return Failure("", 0, text, transient and not names & _CERTAIN_TYPES)


class GaveUp(VillaError):
    """A request failed in a way that more tries may mend, and its budget is spent. What it did is unknown."""


def retried(action: Callable[[], T], what: str, budget: Budget, *, reached: Callable[[], bool]) -> T:
    """`action()`, repeated while it fails in passing. what: method and URL, for the error.

    Raises: GaveUp at the end of the budget; whatever else `action` raises, at once.
    """

    def limit() -> float:
        return budget.seconds if reached() else budget.unreachable

    def stop(state: tenacity.RetryCallState) -> bool:
        waited = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        return state.attempt_number >= budget.tries or (state.attempt_number >= LEAST_TRIES and waited > limit())

    retrying = tenacity.Retrying(
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=budget.first, max=budget.longest),
        retry=tenacity.retry_if_exception(lambda error: failure_of(error).transient),
    )
    try:
        return retrying(action)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        assert last is not None
        where = (
            "the storage is overloaded or cannot be reached from here; check it, use fewer workers, or allow more time than "
            f"{budget.seconds:g} s ({SECONDS_VARIABLE}); what is committed stays, the same command goes on from there"
            if reached()
            else f"nothing has answered at {endpoint()} yet; check AWS_ENDPOINT_URL and the network"
        )
        tries = error.last_attempt.attempt_number
        raise GaveUp(f"{what} failed {tries} times, at last with {failure_of(last).text}; {where}") from None


def endpoint() -> str:
    """Where S3 is, as the environment says, without a user or password."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return url or "the profile's endpoint, or AWS"


def scrub(text: str) -> str:
    """`text` without credentials: the environment's, those in URLs, and whatever looks like a signed query."""
    for name, secret in os.environ.items():
        if (
            len(secret) >= (4 if name.startswith("AWS_") else SHORTEST_SECRET)
            and _NAMES_SECRET.search(name)
            and secret in text
        ):
            text = text.replace(secret, f"<{name}>")
    text = re.sub(r"//[^/@\s'\"]+@", "//", text)
    return re.sub(r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s'\"]+", r"\1<removed>", text)


def explain(error: BaseException, verb: str, url: str) -> VillaError:
    """The error of one request that no further try can mend, in words of value, place and remedy."""
    found = failure_of(error)
    bucket, code, name = url.split("/")[2], found.code, type(error).__name__
    at = f"at {endpoint()}"
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound") or (
        "Token" in name or "SSO" in name
    ):
        return VillaError(
            f"no usable AWS credentials to {verb} {url} ({found.text}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or run where an instance or pod role gives them"
        )
    if code == "NoSuchBucket":
        return VillaError(
            f"there is no bucket {bucket!r} {at} (wanted for {url}); create it, mend the name, or set AWS_ENDPOINT_URL "
            "to the storage that has it"
        )
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        region = found.region or "REGION"
        return VillaError(
            f"bucket {bucket!r} is not in the region that was asked ({found.text}; wanted for {url}); set "
            f"AWS_DEFAULT_REGION={region} to the bucket's region"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidSecurity"):
        return VillaError(
            f"the AWS credentials were refused {at} on the way to {verb} {url} ({found.text}); renew them, or check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE"
        )
    if code == "RequestTimeTooSkewed":
        return VillaError(f"cannot {verb} {url} ({found.text}); set this machine's clock")
    if found.status == 403 or code in ("AccessDenied", "403", "AllAccessDisabled"):
        return VillaError(
            f"these AWS credentials may not {verb} {url} ({found.text}); allow s3:GetObject, s3:PutObject, s3:DeleteObject "
            f"and s3:ListBucket on bucket {bucket!r} (without the last, S3 says forbidden for what is not there), or use "
            "another bucket"
        )
    if found.status == 507 or "StorageFull" in code or "QuotaExceeded" in code:
        return StorageFullError(
            f"no space left {at} for {url} ({found.text}): what was committed stays; free some, run the same command again"
        )
    if name in ("SSLError", "SSLCertVerificationError"):
        return VillaError(f"no trusted connection {at} for {url} ({found.text}); set AWS_CA_BUNDLE to the CA's file")
    return VillaError(f"cannot {verb} {url} {at}: {found.text}; mend that and run the same command again")


def has_answered(error: BaseException) -> bool:
    """Whether a failure shows that a server is there."""
    return bool(failure_of(error).status) or type(error).__name__ in ("ShortRead", "ClientPayloadError", *_SPOILT)


def is_missing(error: BaseException) -> bool:
    """Whether an object is not there (and its bucket may be)."""
    found = failure_of(error)
    return found.code in ("NoSuchKey", "404", "NoSuchVersion", "NoSuchUpload") or (
        found.status == 404 and found.code == ""
    )


def is_refused(error: BaseException) -> bool:
    """Whether a condition of the request did not hold: something stands already, or is not what it was."""
    found = failure_of(error)
    return found.code in ("PreconditionFailed", "412") or found.status == 412


def known(error: BaseException) -> bool:
    """Whether an exception is one of the storage's, to be explained, and not a mistake in this program."""
    module = type(error).__module__.split(".")[0]
    named = (
        bool(failure_of(error).code)
        or module in ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")
        or str(error).startswith("Invalid endpoint")
    )
    return named or isinstance(error, OSError | asyncio.TimeoutError | ShortRead)
