"""Requests to S3, each with a time limit, a budget of retries and errors in words.

s3fs gives the session: the endpoint and credentials of the usual AWS variables, files and roles, and its event loop. They
are in no argument here, so neither in what is pickled or logged.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, NoReturn

import fsspec
from fsspec.asyn import sync

from shards.errors import ShardError, VillaError
from shards.retry import Budget, endpoint, explain, failure_of, has_answered, is_missing, is_refused, known, retried

CONNECT_SECONDS, READ_SECONDS = 5, 60
SLOWEST = 128 << 10  # bytes a second, below which a try is given up
_reached: set[str] = set()  # endpoints that have answered in this process


class Refused(Exception):
    """The condition of a request did not hold."""


class EmptyRange(Exception):
    """The range asked for begins behind the object's end."""


def s3_filesystem() -> Any:
    """s3fs, with neither a cache of listings nor retries of its own. Raises: VillaError when it does not load."""
    config = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 32,
    }
    try:
        fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
    except (ImportError, ValueError) as error:
        raise VillaError(f"s3:// needs the package s3fs, which does not load: {error}; pip install s3fs") from error
    fs.retries = 1
    return fs


class Session:
    """Raises of every request: VillaError for what a user can mend, GaveUp (one of them) when its budget is spent."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._fs, self._pid = s3_filesystem(), os.getpid()

    @property
    def fs(self) -> Any:
        if self._pid != os.getpid():  # after a fork: connections and their event loop stay with the parent
            self._fs, self._pid = s3_filesystem(), os.getpid()
        return self._fs

    def request(
        self,
        method: str,
        verb: str,
        path: str,
        *,
        size: int = 0,
        budget: Budget | None = None,
        take: Callable[[Any, bytes], Any] | None = None,
        keyless: bool = False,
        **arguments: Any,
    ) -> Any:
        """The answer to botocore's `method` on `path` (bucket/key), repeated as the budget allows.

        verb: for errors, as in "may not read". size: bytes that travel, for the time limit of a try. take: makes the result
        of answer and body; what it raises counts as the request's failure. keyless: the request is one to the bucket.
        Raises: FileNotFoundError, Refused, EmptyRange for those three answers.
        """
        bucket, _, key = path.partition("/")
        if key and not keyless:
            arguments["Key"] = key
        fs, limit, place = self.fs, 2 * READ_SECONDS + size / SLOWEST, endpoint()

        async def once() -> Any:
            answer = await fs._call_s3(method, Bucket=bucket, **arguments)
            data = b""
            if method == "get_object":
                async with answer["Body"] as body:
                    data = await body.read()
            return take(answer, data) if take else answer

        async def bounded() -> Any:
            return await asyncio.wait_for(once(), limit)

        def attempt() -> Any:
            try:
                answer = sync(fs.loop, bounded)
            except Exception as error:
                if has_answered(error):
                    _reached.add(place)
                raise
            _reached.add(place)
            return answer

        url = f"s3://{path}"
        try:
            return retried(attempt, f"{method} {url}", budget or self.budget, reached=lambda: place in _reached)
        except VillaError:
            raise
        except Exception as error:  # noqa: BLE001  told apart there
            _raise_known(error, verb, url)


def _raise_known(error: Exception, verb: str, url: str) -> NoReturn:
    code = failure_of(error).code
    if is_missing(error):
        raise FileNotFoundError(url) from None
    if code in ("InvalidRange", "416"):
        raise EmptyRange from None
    if is_refused(error):
        if verb == "read":
            raise ShardError(f"{url} was replaced while it was read; run the same command again") from None
        raise Refused from None
    if not known(error):
        raise error
    raise explain(error, verb, url) from None
