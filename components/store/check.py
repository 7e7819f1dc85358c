"""Whether an S3 store behaves as Kinoflow needs: tried out below a prefix of its own, which is removed again."""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from components import store
from components.findings import Finding
from components.store.failures import StoreError
from components.store.s3 import error_code, request

WRITERS = 8
OBJECTS = 40
RACE_BYTES = 256 << 10
MULTIPART_BYTES = (16 << 20) + 12345
KEYS = ("plain/α 漢字 🎬+&=%#'.bin", "spaces and (brackets)/x y.txt", "/".join(["long" * 50] * 4) + "/end")
CHECKSUM_SETTINGS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


class Wrong(Exception):  # noqa: N818
    """The store answered, and not as it must; `advice` says what to do."""

    def __init__(self, seen: str, advice: str) -> None:
        super().__init__(seen)
        self.seen, self.advice = seen, advice


BROKEN = "Do not use this store: outputs could be lost or mixed up."


class _Trial:
    """The checks, on objects below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.bucket, self.key = store.split_s3(prefix)

    def uri(self, *parts: str) -> str:
        return store.join(self.prefix, *parts)

    def reach(self) -> str:
        """The bucket is there and lets us write."""
        data = os.urandom(1000)
        store.write_bytes(self.uri("first"), data)
        if store.read_bytes(self.uri("first")) != data:
            raise Wrong("an object came back with other bytes", BROKEN)
        answer = request("look up", self.prefix, lambda s3: s3.head_object(Bucket=self.bucket, Key=f"{self.key}/first"))
        server = answer["ResponseMetadata"]["HTTPHeaders"].get("server", "")
        return f"written and read{f'; the server is {server}' if server else ''}"

    def multipart(self) -> str:
        """A large object in parts, invisible until it is whole."""
        content = store.BytesContent(os.urandom(1 << 20) * 16 + os.urandom(MULTIPART_BYTES - (16 << 20)))
        wanted = store.write(self.uri("large"), content)
        if store.checksum(self.uri("large")) != wanted:
            raise Wrong("an object of two parts came back with other bytes", BROKEN)
        begun = request(
            "begin", self.prefix,
            lambda s3: s3.create_multipart_upload(Bucket=self.bucket, Key=f"{self.key}/begun"),
        )  # fmt: skip
        seen = any(item.key == "begun" for item in store.list_objects(self.prefix))
        request(
            "abort", self.prefix,
            lambda s3: s3.abort_multipart_upload(
                Bucket=self.bucket, Key=f"{self.key}/begun", UploadId=begun["UploadId"]
            ),
        )  # fmt: skip
        if seen:
            raise Wrong("an upload that was only begun is listed", BROKEN)
        return f"{wanted.size_bytes >> 20} MiB in two parts"

    def ranges(self) -> str:
        """Bytes from the middle of an object."""
        data = os.urandom(100_000)
        store.write_bytes(self.uri("ranges"), data)
        for start, length in ((0, 1), (4096, 5000), (99_999, 1)):
            if store.read_range(self.uri("ranges"), start, length) != data[start : start + length]:
                raise Wrong(f"bytes {start} to {start + length} came back wrong", BROKEN)
        return "first, middle and last bytes"

    def listing(self) -> str:
        """What was written is listed at once, and what was removed is not."""
        names = [f"{number:03}" for number in range(OBJECTS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda name: store.write_bytes(self.uri("list", name), name.encode()), names))
        if [item.key for item in store.list_objects(self.uri("list"))] != names:
            raise Wrong("objects just written are missing from the list", BROKEN)
        paged = request(
            "list", self.prefix,
            lambda s3: [
                item["Key"] for page in s3.get_paginator("list_objects_v2").paginate(
                    Bucket=self.bucket, Prefix=f"{self.key}/list/", PaginationConfig={"PageSize": 7}
                ) for item in page.get("Contents", [])
            ],
        )  # fmt: skip
        if len(paged) != OBJECTS or len(set(paged)) != OBJECTS:
            raise Wrong("listing in pages loses or repeats objects", BROKEN)
        store.delete(self.uri("list", names[0]))
        if [item.key for item in store.list_objects(self.uri("list"))] != names[1:]:
            raise Wrong("an object just removed is still listed", BROKEN)
        return f"{OBJECTS} objects, also in pages"

    def checksums(self) -> str:
        """Bytes that were damaged on their way are refused."""
        wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
        if self._accepts(ContentMD5=wrong):
            raise Wrong("a wrong Content-MD5 is accepted", "Damage on the way to the store stays unseen: use TLS.")
        sha256 = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        also = self._accepts(ChecksumSHA256=sha256, ChecksumAlgorithm="SHA256")
        return f"Content-MD5 is checked{', x-amz-checksum-sha256 is not (manifests are)' if also else ', SHA-256 too'}"

    def _accepts(self, **options: Any) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client = request("reach", self.prefix, lambda s3: s3)
        try:
            client.put_object(Bucket=self.bucket, Key=f"{self.key}/damaged", Body=b"these", **options)
        except ClientError:
            return False
        except BotoCoreError as error:
            raise StoreError(f"Could not write to {self.prefix}: {type(error).__name__}.") from error
        return True

    def race(self) -> str:
        """Writers of one object: one of them wins, whole; readers never see a mixture."""
        contents = [bytes([number]) * RACE_BYTES for number in range(WRITERS)]
        store.write_bytes(self.uri("race"), contents[0])

        def write_and_read(content: bytes) -> bytes:
            store.write_bytes(self.uri("race"), content)
            return store.read_bytes(self.uri("race"))

        with ThreadPoolExecutor(WRITERS) as pool:
            seen = list(pool.map(write_and_read, contents))
        if not {*seen, store.read_bytes(self.uri("race"))} <= set(contents):
            raise Wrong("a mixture of two writers' bytes was read", BROKEN)
        return f"{WRITERS} writers of one object"

    def keys(self) -> str:
        """Names that are long or not ASCII."""
        for key in KEYS:
            store.write_bytes(self.uri("keys", key), key.encode())
        if {item.key for item in store.list_objects(self.uri("keys"))} != set(KEYS):
            raise Wrong("names come back changed", "Keep names of videos plain and short, or use another store.")
        if any(store.read_bytes(self.uri("keys", key)) != key.encode() for key in KEYS):
            raise Wrong("objects of unusual names come back with other bytes", BROKEN)
        return f"Unicode, blanks, {max(len(key.encode()) for key in KEYS)} bytes long"

    def conditional(self) -> str | None:
        """`If-None-Match: *` on an object that is there; None when the store honours it."""
        store.write_bytes(self.uri("damaged"), b"first")
        return "If-None-Match is ignored; Kinoflow does without" if self._accepts(IfNoneMatch="*") else None

    def defaults(self) -> str | None:
        """A client with botocore's own checksum defaults, as other programs have; None when it works."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        options = Config(
            request_checksum_calculation="when_supported", response_checksum_validation="when_supported",
            s3={"addressing_style": "path"},
        )  # fmt: skip
        client = boto3.session.Session().client("s3", region_name=region, config=options)
        key = f"{self.key}/defaults"
        try:
            client.put_object(Bucket=self.bucket, Key=key, Body=b"0123456789")
            if client.get_object(Bucket=self.bucket, Key=key, Range="bytes=2-5")["Body"].read() == b"2345":
                return None
        except (BotoCoreError, ClientError) as error:
            return f"a client with botocore's default checksums fails ({type(error).__name__}, {_code(error)})"
        return "a client with botocore's default checksums reads other bytes"


def _code(error: Exception) -> str:
    return error_code(error) if hasattr(error, "response") else "ranged read"


def check_store(uri: str) -> tuple[list[Finding], dict[str, str]]:
    """Try a store out below `uri` and remove what the trial has written.

    Returns:
        the findings, and the environment variables to use with this store (credentials left out).

    Raises:
        StoreError: `uri` is not of the form s3://bucket/prefix.
    """
    if not store.is_s3(uri):
        raise StoreError(f"{uri!r} is no store; write s3://bucket or s3://bucket/prefix.")
    trial = _Trial(store.join(uri, f"kinoflow-doctor-{uuid.uuid4().hex[:12]}"))
    settings = {
        "AWS_ENDPOINT_URL_S3": os.environ.get("AWS_ENDPOINT_URL_S3", ""),
        "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    }
    found = [_made("store: reachable", trial.reach)]
    checks: dict[str, Callable[[], str]] = {
        "multipart": trial.multipart, "range reads": trial.ranges, "list after write": trial.listing,
        "checksums": trial.checksums, "concurrent writers": trial.race, "names": trial.keys,
    }  # fmt: skip
    try:
        if found[0].state == "failed":
            return found, settings
        found += [_made(f"store: {name}", check) for name, check in checks.items()]
        found += [_lived_without("store: conditional put", trial.conditional, "If-None-Match is honoured")]
        found += [_lived_without("store: default checksums", trial.defaults, "other programs need no settings")]
        if found[-1].state == "note":
            settings |= CHECKSUM_SETTINGS
    finally:
        if found[0].state == "ok" or found[0].advice == BROKEN:
            found.append(_made("store: clean-up", lambda: _clean_up(trial.prefix)))
    return found, {name: value for name, value in settings.items() if value}


def _made(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except Wrong as wrong:
        return Finding(name, "failed", wrong.seen, wrong.advice)
    except StoreError as error:
        return Finding(name, "failed", str(error), "See the sentence; `docs` of the store say what it supports.")


def _lived_without(name: str, check: Callable[[], str | None], good: str) -> Finding:
    try:
        missing = check()
    except StoreError as error:
        return Finding(name, "not checked", str(error))
    return Finding(name, "note", missing) if missing else Finding(name, "ok", good)


def _clean_up(prefix: str) -> str:
    for pending in store.pending_uploads(prefix):
        store.abort(pending)
    for item in store.list_objects(prefix):
        with suppress(store.ObjectMissing):
            store.delete(store.join(prefix, item.key))
    left = store.list_objects(prefix)
    if left:
        raise Wrong(f"{len(left)} objects are left below {prefix}", f"Remove {prefix} by hand.")
    return "nothing is left behind"
