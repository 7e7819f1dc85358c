"""`check_store` against a real S3 server: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import pytest

from components import store
from components.store.check import CHECKSUM_SETTINGS, check_store
from components.store.failures import StoreError
from tests.conftest import S3Server


def test_the_embedded_server_serves_and_needs_its_settings(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    store.write_bytes(f"{bucket}/mine/kept", b"kept")
    findings, settings = check_store(f"{bucket}/mine")
    states = {finding.check.removeprefix("store: "): finding.state for finding in findings}
    assert states == {
        "reachable": "ok", "multipart": "ok", "range reads": "ok", "list after write": "ok", "checksums": "ok",
        "concurrent writers": "ok", "names": "ok", "conditional put": "note", "default checksums": "note",
        "clean-up": "ok",
    }  # fmt: skip
    assert settings == {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint, "AWS_DEFAULT_REGION": "us-east-1", **CHECKSUM_SETTINGS,
    }  # fmt: skip
    assert [item.key for item in store.list_objects(bucket)] == ["mine/kept"]
    assert not store.pending_uploads(bucket)


def test_wrong_credentials_and_a_missing_bucket_are_failures_with_advice(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((finding,), _) = check_store("s3://nowhere-at-all/x")
    assert finding.state == "failed" and "bucket does not exist" in finding.seen and finding.advice
    bucket = s3_server.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret")
    ((finding,), settings) = check_store(bucket)
    assert finding.state == "failed" and "refused the credentials" in finding.seen
    assert "planted" not in finding.seen + str(settings)


def test_a_folder_is_no_store() -> None:
    with pytest.raises(StoreError, match="'/tmp' is no store"):
        check_store("/tmp")
