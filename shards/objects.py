"""Objects of S3 buckets: reading, listing, writing whole objects, and the put-if-absent that commits are made of.

Paths are `bucket/key`. Put-if-absent, with answers that get lost:

1. The object is put with `If-None-Match: *` and a fresh random token in its metadata. An answer of success: it is ours.
2. An answer of "something stands" may mean our own: the try before may have been done and its answer lost, and the HTTP
   client below repeats a PUT by itself on a connection that broke. So the token of what stands is read: ours, or not ours.
3. No answer within the budget: GaveUp. Whether it stands is unknown, and nothing that it may promise is removed.

The server creates at most one object under a name, and the token says whose it is, so there is never a second winner.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import ShardError, VillaError
from shards.prefetch import in_order
from shards.retry import Budget, ShortRead, default_budget
from shards.session import EmptyRange, Refused, Session

TOKEN = "villa-token"
PART = 16 << 20  # of an upload; grows with files over 160 GB, since S3 takes 10,000 parts
COPY_PART = 256 << 20  # of a copy inside the storage; a single request copies 5 GB at most
PARALLEL = 4


@dataclass(frozen=True)
class Stat:
    """What is known of an object; `modified` in seconds since 1970, by the storage's clock."""

    path: str
    size: int
    etag: str = ""
    token: str = ""
    modified: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Bytes of an object of `total` bytes."""

    data: bytes
    total: int
    etag: str


class Objects:
    """Requests to S3. Every method raises VillaError for what a user can mend, GaveUp when its budget is spent."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.session = Session(budget or default_budget())

    # ---- reading

    def head(self, path: str) -> Stat | None:
        """None where there is no such object."""
        try:
            found = self.session.request("head_object", "look at", path)
        except FileNotFoundError:
            return None
        token = found.get("Metadata", {}).get(TOKEN, "")
        return Stat(path, int(found["ContentLength"]), found.get("ETag", ""), token, found["LastModified"].timestamp())

    def get(self, path: str, offset: int, length: int, etag: str = "") -> Piece:
        """Up to `length` bytes from `offset`, fewer only at the end of the object. etag: of the object this must still be.

        Raises: FileNotFoundError; ShardError when the object was replaced meanwhile.
        """
        if length <= 0:
            return Piece(b"", 0, etag)
        more: dict[str, Any] = {"IfMatch": etag} if etag else {}
        span = f"bytes={offset}-{offset + length - 1}"
        try:
            return self.session.request("get_object", "read", path, size=length, take=_piece, Range=span, **more)
        except EmptyRange:
            return Piece(b"", 0, etag)

    def entries(self, prefix: str, *, recursive: bool = False) -> Iterator[Stat]:
        """Objects whose path starts with `prefix`, page by page; those behind a further `/` only if `recursive`."""
        bucket, _, key = prefix.partition("/")
        more: dict[str, Any] = {} if recursive else {"Delimiter": "/"}
        while True:
            page = self.session.request("list_objects_v2", "list", f"{bucket}/", Prefix=key, **more)
            for found in page.get("Contents", ()):
                modified = found["LastModified"].timestamp()
                yield Stat(f"{bucket}/{found['Key']}", int(found["Size"]), found.get("ETag", ""), "", modified)
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, which ends in a slash or is a bucket's root."""
        bucket, _, key = prefix.partition("/")
        more: dict[str, Any] = {}
        names: list[str] = []
        while True:
            page = self.session.request("list_objects_v2", "list", f"{bucket}/", Prefix=key, Delimiter="/", **more)
            names += [p["Prefix"][len(key) :].rstrip("/") for p in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                return sorted(names)
            more["ContinuationToken"] = page["NextContinuationToken"]

    def any_below(self, prefix: str) -> bool:
        bucket, _, key = prefix.partition("/")
        return bool(
            self.session.request("list_objects_v2", "list", f"{bucket}/", Prefix=key, MaxKeys=1).get("Contents")
        )

    # ---- writing

    def put(self, path: str, data: bytes) -> None:
        """Create or replace a whole object."""
        self.session.request("put_object", "write", path, size=len(data), Body=data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Whether `path` was created by this call; see the head of this file.

        Raises: GaveUp when that is unknown; ShardError when what stood was removed before it could be looked at.
        """
        token = secrets.token_hex(16)
        try:
            more: dict[str, Any] = {"Body": data, "IfNoneMatch": "*", "Metadata": {TOKEN: token}}
            self.session.request("put_object", "create", path, size=len(data), **more)
        except Refused:
            standing = self.head(path)
            if standing is None:
                raise ShardError(
                    f"s3://{path} was removed while it was created (the stage was cleared meanwhile); run the same "
                    "command again"
                ) from None
            return standing.token == token
        return True

    def upload(self, local_path: str, path: str) -> None:
        """A local file as an object, visible when it is whole; parts are repeated singly."""
        size = os.path.getsize(local_path)

        def part(offset: int, length: int) -> bytes:
            with open(
                local_path, "rb"
            ) as file:  # opened for each part: one left behind must not read from another's handle
                file.seek(offset)
                data = file.read(length)
            if len(data) != length:
                raise ShardError(f"{local_path} was cut while it was uploaded; run the same command again")
            return data

        if size <= 2 * PART:
            self.put(path, part(0, size))
            return

        def send(number: int, offset: int, length: int, upload: str) -> Any:
            more: dict[str, Any] = {"Body": part(offset, length), "PartNumber": number, "UploadId": upload}
            return self.session.request("upload_part", "write", path, size=length, **more)

        self._multipart(path, size, max(PART, -(-size // 10_000)), send)

    def copy(self, source: str, target: str, size: int) -> None:
        """Copy an object of `size` bytes inside the storage. Raises: FileNotFoundError when `source` is not there."""
        bucket, _, key = source.partition("/")
        origin: dict[str, Any] = {"CopySource": {"Bucket": bucket, "Key": key}}
        if size <= COPY_PART:
            self.session.request("copy_object", "copy to", target, size=size, **origin)
            return

        def send(number: int, offset: int, length: int, upload: str) -> Any:
            span = f"bytes={offset}-{offset + length - 1}"
            more: dict[str, Any] = {**origin, "CopySourceRange": span, "PartNumber": number, "UploadId": upload}
            return self.session.request("upload_part_copy", "copy to", target, size=length, **more)["CopyPartResult"]

        self._multipart(target, size, max(COPY_PART, -(-size // 10_000)), send)

    def remove(self, paths: Sequence[str], budget: Budget | None = None) -> None:
        """Remove objects of one bucket, a thousand a request; no error for those that are gone."""
        for start in range(0, len(paths), 1000):
            left = list(paths[start : start + 1000])
            if len(left) == 1:
                self.session.request("delete_object", "remove", left[0], budget=budget)
                continue
            objects = [{"Key": p.partition("/")[2]} for p in left]
            more: dict[str, Any] = {"Delete": {"Objects": objects, "Quiet": True}}
            self.session.request(
                "delete_objects", "remove", left[0], budget=budget, take=_all_removed, keyless=True, **more
            )

    def _multipart(self, path: str, size: int, step: int, send: Callable[[int, int, int, str], Any]) -> None:
        """Parts of `step` bytes, a few at a time. A lost answer to the last request is made up for by the token."""
        token = secrets.token_hex(16)
        upload = self.session.request("create_multipart_upload", "write", path, Metadata={TOKEN: token})["UploadId"]
        try:
            spans = [(n, at, min(step, size - at), upload) for n, at in enumerate(range(0, size, step), 1)]
            tasks = ((lambda span=span: send(*span)) for span in spans)
            sent = [answer["ETag"] for answer in in_order(tasks, PARALLEL)]
            parts = {"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(sent, 1)]}
            try:
                more: dict[str, Any] = {"UploadId": upload, "MultipartUpload": parts}
                self.session.request("complete_multipart_upload", "write", path, size=size, **more)
            except FileNotFoundError:  # the upload is no more: a try before has finished it, or another has ended it
                standing = self.head(path)
                if standing is None or standing.token != token:
                    raise ShardError(
                        f"the upload of s3://{path} was ended by another; run the same command again"
                    ) from None
        except BaseException:
            try:
                quick = Budget(tries=2, seconds=5.0)
                self.session.request("abort_multipart_upload", "give up", path, budget=quick, UploadId=upload)
            except (VillaError, FileNotFoundError):
                pass  # the bucket's lifecycle rule removes it
            raise


def _piece(answer: Any, data: bytes) -> Piece:
    """Raises: ShortRead when there are other bytes than the answer's headers promise."""
    span, _, total = str(answer.get("ContentRange", "")).removeprefix("bytes ").partition("/")
    if not total.isdigit():
        raise ShortRead("the answer to a range request does not say which range it is")
    first, _, last = span.partition("-")
    promised = int(last) - int(first) + 1
    if len(data) != promised:
        raise ShortRead(f"{len(data)} bytes came of {promised}")
    return Piece(data, int(total), str(answer.get("ETag", "")))


class NotRemoved(Exception):
    """An object of a request for many that S3 did not remove; `response` as an exception of botocore has it."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry.get("Code", ""))
        self.response = {"Error": entry, "ResponseMetadata": {}}


def _all_removed(answer: Any, data: bytes) -> Any:
    """Raises: NotRemoved for the first object that was not."""
    for entry in answer.get("Errors", ()):
        if entry.get("Code") not in ("NoSuchKey", "404"):
            raise NotRemoved(entry)
    return answer
