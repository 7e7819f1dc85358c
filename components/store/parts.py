"""Large objects over S3: sent in parallel parts, gone on with after a kill, read in parallel ranges.

A part is checked twice: the server compares it with its `Content-MD5`, and an upload that was interrupted only counts
the parts whose MD5 (their ETag) is that of the bytes to be written now.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from components.store.content import Content, Transferred, ranges
from components.store.failures import ObjectMissing, StoreError
from components.store.s3 import error_code, request, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

logger = logging.getLogger(__name__)

T = TypeVar("T")
PART_BYTES = 16 << 20
MAX_PARTS = 10_000
TRANSFERS = 4
MAX_RESTARTS = 5
GONE = "NoSuchUpload"


class _UploadGoneError(Exception):
    """The upload cannot be gone on with: the server has forgotten it, or its parts are of other bytes."""


@dataclass(frozen=True)
class PendingUpload:
    """A multipart upload that nobody has completed; its parts take room and are not visible.

    Attributes:
        uri: of the object it was to become.
        upload_id: the server's name for it.
        started: when it was begun.
    """

    uri: str
    upload_id: str
    started: datetime


def put(uri: str, content: Content) -> Transferred:
    """Write an object, hashing it on the way: in one request when it is small, in parallel parts otherwise.

    Parts that an earlier, interrupted upload of the same bytes has left at the server are not sent again.
    """
    if content.size_bytes <= PART_BYTES:
        data = content.read(0, content.size_bytes)
        bucket, key = split_s3(uri)
        md5 = _content_md5(data)
        request("write", uri, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=data, ContentMD5=md5))
        return Transferred(len(data), hashlib.sha256(data).hexdigest())
    for _ in range(MAX_RESTARTS):
        try:
            return _Upload(uri, content).send()
        except _UploadGoneError:
            logger.warning("The begun upload of %s cannot be gone on with; it starts anew.", uri)
    raise StoreError(f"Could not write {uri}: the object store has lost the begun upload {MAX_RESTARTS} times.")


def part_bytes(size_bytes: int) -> int:
    """Size of every part but the last: a function of the object's size alone, so that a later process cuts alike."""
    pieces = -(-size_bytes // (PART_BYTES * MAX_PARTS))
    return PART_BYTES * max(1, pieces)


class _Upload:
    """One multipart upload from its first part to its completion."""

    def __init__(self, uri: str, content: Content) -> None:
        self.uri, self.content = uri, content
        self.bucket, self.key = split_s3(uri)
        self.upload_id, self.there = self._found() or (self._begin(), {})

    def send(self) -> Transferred:
        """Send what is missing, then make the object appear."""
        digest, size_bytes = hashlib.sha256(), self.content.size_bytes

        def pieces() -> Iterator[tuple[int, bytes]]:
            for number, (offset, length) in enumerate(ranges(size_bytes, part_bytes(size_bytes)), 1):
                data = self.content.read(offset, length)
                digest.update(data)
                yield number, data

        parts = list(_in_order(self._send_part, pieces()))
        self._complete(parts)
        return Transferred(size_bytes, digest.hexdigest())

    def _found(self) -> tuple[str, dict[int, str]] | None:
        """The upload of this object that an earlier process has begun last, and the MD5 of its parts by number."""
        begun = sorted((u for u in pending_uploads(self.uri) if u.uri == self.uri), key=lambda upload: upload.started)
        if not begun:
            return None
        upload_id, there = begun[-1].upload_id, {}
        query = {"Bucket": self.bucket, "Key": self.key, "UploadId": upload_id}
        for page in self._ask(lambda s3: list(s3.get_paginator("list_parts").paginate(**query))):
            for part in page.get("Parts", []):
                there[part["PartNumber"]] = part["ETag"].strip('"')
        logger.info("%s: going on with an upload of which %d parts are there.", self.uri, len(there))
        return upload_id, there

    def _begin(self) -> str:
        answer = self._ask(lambda s3: s3.create_multipart_upload(Bucket=self.bucket, Key=self.key))
        return str(answer["UploadId"])

    def _send_part(self, piece: tuple[int, bytes]) -> CompletedPartTypeDef:
        number, data = piece
        md5 = hashlib.md5(data, usedforsecurity=False)
        if number in self.there:
            if self.there[number] != md5.hexdigest():  # not every server lets a part be replaced
                abort_upload(PendingUpload(self.uri, self.upload_id, datetime.now(UTC)))
                raise _UploadGoneError
            return {"PartNumber": number, "ETag": f'"{self.there[number]}"'}
        answer = self._ask(
            lambda s3: s3.upload_part(
                Bucket=self.bucket, Key=self.key, UploadId=self.upload_id, PartNumber=number, Body=data,
                ContentMD5=base64.b64encode(md5.digest()).decode(),
            )
        )  # fmt: skip
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _complete(self, parts: list[CompletedPartTypeDef]) -> None:
        try:
            self._ask(
                lambda s3: s3.complete_multipart_upload(
                    Bucket=self.bucket, Key=self.key, UploadId=self.upload_id, MultipartUpload={"Parts": parts}
                )
            )
        except _UploadGoneError:
            # the answer to an earlier attempt may have been lost on the way back
            if size_of(self.uri) != self.content.size_bytes:
                raise

    def _ask(self, ask: Callable[[Any], T]) -> T:
        from botocore.exceptions import ClientError

        def noticed(s3: Any) -> T:
            try:
                return ask(s3)
            except ClientError as error:
                if error_code(error) == GONE:
                    raise _UploadGoneError from error
                raise

        return request("write", self.uri, noticed)


def get(uri: str, take: Callable[[bytes], object]) -> Transferred:
    """Read an object in parallel ranges and hash it on the way.

    Args:
        uri: of the object.
        take: receives the bytes piece by piece, in order.
    """
    bucket, key = split_s3(uri)
    digest = hashlib.sha256()

    def ask(s3: Any) -> tuple[int, str, bytes | None]:
        answer = s3.get_object(Bucket=bucket, Key=key)
        with answer["Body"] as body:
            size: int = answer["ContentLength"]
            return size, answer["ETag"], body.read() if size <= PART_BYTES else None

    size_bytes, etag, whole = request("read", uri, ask)
    if whole is not None:
        digest.update(whole)
        take(whole)
        return Transferred(len(whole), digest.hexdigest())

    received = 0

    def read(piece: tuple[int, int]) -> bytes:
        return read_range(uri, *piece, etag=etag)

    for data in _in_order(read, ranges(size_bytes, PART_BYTES)):
        digest.update(data)
        take(data)
        received += len(data)
    return Transferred(received, digest.hexdigest())


def read_range(uri: str, start: int, length: int, etag: str | None = None) -> bytes:
    """`length` bytes from `start` on, fewer where the object ends; with an ETag only of that very object."""
    bucket, key = split_s3(uri)
    query = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{start + length - 1}"}
    if etag:
        query["IfMatch"] = etag

    def ask(s3: Any) -> bytes:
        with s3.get_object(**query)["Body"] as body:
            data: bytes = body.read()
            return data

    return request("read", uri, ask)


def size_of(uri: str) -> int | None:
    """Bytes of an object; None when there is none."""
    bucket, key = split_s3(uri)
    try:
        return int(request("look up", uri, lambda s3: s3.head_object(Bucket=bucket, Key=key))["ContentLength"])
    except ObjectMissing:
        return None


def pending_uploads(prefix: str) -> list[PendingUpload]:
    """Multipart uploads below `prefix` (or of exactly that object) that were begun and not completed."""
    from botocore.exceptions import ClientError

    bucket, key = split_s3(prefix)

    def ask(s3: Any) -> list[Any]:
        try:
            pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
            return [upload for page in pages for upload in page.get("Uploads", [])]
        except ClientError as error:
            # rclone says so where there is none; a policy may forbid the question, which costs no more than a resume
            if error_code(error) in (GONE, "AccessDenied", "NotImplemented", "MethodNotAllowed"):
                return []
            raise

    found = request("list the uploads of", prefix, ask)
    below = f"{key.rstrip('/')}/" if key else ""
    return [
        PendingUpload(f"s3://{bucket}/{item['Key']}", item["UploadId"], item["Initiated"])
        for item in found
        if item["Key"] == key or item["Key"].startswith(below)
    ]


def abort_upload(upload: PendingUpload) -> None:
    """Let the server forget a begun upload and free its parts; no error if it has."""
    from botocore.exceptions import ClientError

    bucket, key = split_s3(upload.uri)

    def ask(s3: Any) -> None:
        try:
            s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.upload_id)
        except ClientError as error:
            if error_code(error) != GONE:
                raise

    request("abort the upload of", upload.uri, ask)


P = TypeVar("P")


def _in_order(work: Callable[[P], T], pieces: Iterable[P]) -> Iterator[T]:
    """Results of `work` on every piece, in order, with at most `TRANSFERS` pieces taken at a time."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        running: deque[Future[T]] = deque()
        for piece in pieces:
            if len(running) >= TRANSFERS:
                yield running.popleft().result()
            running.append(pool.submit(work, piece))
        while running:
            yield running.popleft().result()


def _content_md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
