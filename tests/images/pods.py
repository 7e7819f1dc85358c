"""Runs a command of an image the way a pod with a closed root does, without a container engine.

The image's file system is mounted read-only in a mount and process namespace of its own; only /tmp, /dev/shm and the
volumes that Kubeflow's launcher brings can be written. The command runs as the image's user, without capabilities and
with `no_new_privs`, in the image's environment and nothing of this machine's. The network is the machine's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHER_VOLUMES = ("minio", "s3", "gcs")
"""Folders at the root that Kubeflow gives every task as empty volumes, for its artifacts."""

_POD = """
set -eu
root=$1 scratch=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$scratch/tmp" "$root/tmp"
for volume in minio s3 gcs; do mount --bind "$scratch/$volume" "$root/$volume"; done
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755 devices "$root/dev"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
mount -o remount,ro,mode=755 "$root/dev"
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid --inh-caps=-all \\
  chroot --userspec="$user" --groups= "$root" "$@"
"""


@dataclass(frozen=True)
class Pod:
    """A built image, mounted.

    Attributes:
        root: where its file system lies.
        config: of the image, as OCI writes it: User, Env, Cmd, WorkingDir, Labels.
    """

    root: Path
    config: dict[str, Any]

    def run(
        self, command: list[str], scratch: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 240.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `scratch` becomes the pod's volumes and stays."""
        for name in ("tmp", *LAUNCHER_VOLUMES):
            volume = scratch / name
            volume.mkdir(exist_ok=True, parents=True)
            volume.chmod(0o1777)
        told = {**dict(pair.split("=", 1) for pair in self.config["Env"]), **(environment or {})}
        variables = [f"{name}={value}" for name, value in told.items()]
        return subprocess.run(
            [
                "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
                "sh", "-c", _POD, "pod", str(self.root), str(scratch), self.config["User"],
                "/usr/bin/env", "-i", f"--chdir={self.config['WorkingDir']}", *variables, *command,
            ],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip


@contextmanager
def mounted(image: str) -> Iterator[Pod]:
    """A container of an image, mounted as long as the body runs; what a pod's runtime makes at the root is there."""
    container = _buildah("from", image)
    try:
        root = Path(_buildah("mount", container))
        for name in LAUNCHER_VOLUMES:
            (root / name).mkdir()
        yield Pod(root, json.loads(_buildah("inspect", "--type", "image", image))["OCIv1"]["config"])
    finally:
        _buildah("umount", container)
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
