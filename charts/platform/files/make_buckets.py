"""Create the buckets named as arguments in the S3 store the environment describes; existing ones stay as they are."""

import os
import sys
import time

import boto3
import botocore.config
import botocore.exceptions

WAIT_S = float(os.environ.get("STORE_WAIT_S", "300"))


def main(buckets):
    """Wait for the store, then make what is missing."""
    once = botocore.config.Config(connect_timeout=10, retries={"total_max_attempts": 1})
    client = boto3.client("s3", config=once)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            break
        except botocore.exceptions.ClientError as error:
            sys.exit(f"The store refuses to list its buckets: {error}. Check the secret's two keys.")
        except botocore.exceptions.BotoCoreError as error:
            if time.monotonic() > deadline:
                sys.exit(f"The store did not answer within {WAIT_S:.0f} s: {error}.")
            time.sleep(2)
    for bucket in buckets:
        if bucket in existing:
            print(f"{bucket}: exists")
            continue
        client.create_bucket(Bucket=bucket)
        print(f"{bucket}: created")


if __name__ == "__main__":
    main(sys.argv[1:])
