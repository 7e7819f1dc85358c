"""An object store of one's own, to be killed and started again on the same port with the same objects."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "kinoflow-test", "kinoflow-test-secret"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_s3_server(root: Path, port: int) -> subprocess.Popen[bytes]:
    """An `rclone serve s3` that answers already, its objects below `root`; the caller ends it."""
    data, log = root / "data", root / "log"
    data.mkdir(exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", "/dev/null",
        "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--cache-dir", str(root / "cache"),
        f":hasher,remote={data},hashes=md5,max_age=off:",
    ]  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    deadline_s = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
        except urllib.error.HTTPError:
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')}")


def s3_environment(endpoint: str) -> dict[str, str]:
    """What a client of such a server has in its environment, and nothing of this machine's own."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
