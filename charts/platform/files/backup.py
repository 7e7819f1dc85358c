"""Copy a tracking database into the S3 store the environment describes and delete the oldest copies.

Arguments: the SQLite database or a dump of PostgreSQL, the s3:// prefix of the copies, how many copies to keep.
"""

import gzip
import pathlib
import shutil
import sqlite3
import sys
import tempfile
import time

import boto3


def snapshot(database, folder):
    """A consistent, compressed copy of a live SQLite database; returns its file."""
    copy = folder / "mlflow.db"
    source = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)
    target = sqlite3.connect(copy)
    try:
        source.backup(target)
        verdict = target.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = error
    finally:
        source.close()
        target.close()
    if verdict != "ok":
        sys.exit(f"The copy of {database} is damaged: {verdict}. Nothing was uploaded and nothing deleted.")
    packed = folder / "mlflow.db.gz"
    with copy.open("rb") as read, gzip.open(packed, "wb", compresslevel=6) as write:
        shutil.copyfileobj(read, write)
    return packed


def upload(file, destination, keep):
    """Store the file under the prefix by its time, then leave only the newest `keep` files there."""
    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    client = boto3.client("s3")
    now_ns = time.time_ns()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 10**9)) + f".{now_ns // 1000 % 10**6:06d}Z"
    key = f"{prefix}{stamp}-{file.name}"
    client.upload_file(str(file), bucket, key)
    size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    if size != file.stat().st_size:
        sys.exit(f"s3://{bucket}/{key} has {size} bytes, the copy {file.stat().st_size}. Nothing was deleted.")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", []) if "Z-mlflow." in entry["Key"])
    for old in keys[:-keep]:
        client.delete_object(Bucket=bucket, Key=old)
    print(f"s3://{bucket}/{key}: {size} bytes; {len(keys[:-keep])} older copies deleted")


def main(database, destination, keep):
    """Back up one database."""
    database = pathlib.Path(database)
    if not database.exists():
        sys.exit(f"There is no database at {database}.")
    with tempfile.TemporaryDirectory() as folder:
        file = snapshot(database, pathlib.Path(folder)) if database.suffix == ".db" else database
        upload(file, destination, int(keep))


if __name__ == "__main__":
    main(*sys.argv[1:])
