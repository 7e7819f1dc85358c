"""Bring a copy of the tracking database back from the S3 store the environment describes.

Arguments: the s3:// prefix of the copies, the file to write, and the name of the copy (the newest when empty). A
SQLite database is checked before it takes the old one's place, which stays beside it; MLflow must not be running.
"""

import gzip
import pathlib
import shutil
import sqlite3
import sys

import boto3


def choose(client, bucket, prefix, suffix, name):
    """Key of the wanted copy."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", []) if entry["Key"].endswith(suffix))
    if not keys:
        sys.exit(f"There is no copy below s3://{bucket}/{prefix}.")
    if not name:
        return keys[-1]
    if prefix + name not in keys:
        sys.exit(f"There is no copy named {name}; there are {', '.join(key.removeprefix(prefix) for key in keys)}.")
    return prefix + name


def replace(packed, database):
    """Unpack, check, and put the database into its place."""
    fresh = database.with_suffix(".restored")
    with gzip.open(packed, "rb") as read, fresh.open("wb") as write:
        shutil.copyfileobj(read, write)
    connection = sqlite3.connect(fresh)
    try:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = error
    finally:
        connection.close()
    if verdict != "ok":
        fresh.unlink()
        sys.exit(f"The copy is damaged: {verdict}. {database} is untouched.")
    if database.exists():
        database.replace(database.with_suffix(".before-restore"))
    fresh.replace(database)


def main(source, target, name=""):
    """Restore one database."""
    target = pathlib.Path(target)
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    client = boto3.client("s3")
    sqlite = target.suffix == ".db"
    key = choose(client, bucket, prefix, "Z-mlflow.db.gz" if sqlite else "Z-mlflow.dump", name)
    packed = target.with_suffix(".download") if sqlite else target
    client.download_file(bucket, key, str(packed))
    if sqlite:
        replace(packed, target)
        packed.unlink()
    print(f"{target} is s3://{bucket}/{key}")


if __name__ == "__main__":
    main(*sys.argv[1:])
