"""The images, built by `make images` from a base made here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.images.base import make_base
from tests.images.pods import Pod, mounted

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".kinoflow" / "images"
"""Ignored by Git; what a second run need not do again."""


@dataclass(frozen=True)
class Built:
    """What `make images` made.

    Attributes:
        printed: its lines, one per image.
        pods: the images by target, mounted.
    """

    printed: list[str]
    pods: dict[str, Pod]


@pytest.fixture(scope="session")
def built() -> Iterator[Built]:
    """All images, in a storage of their own."""
    if os.getuid() != 0:
        pytest.skip("images are built and mounted as root here")
    if missing := [name for name in ("buildah", "debootstrap", "setpriv", "unshare") if not shutil.which(name)]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow namespaces of our own")
    CACHE.mkdir(parents=True, exist_ok=True)
    storage = CACHE / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE}/storage"\nrunroot = "{CACHE}/run"\n')
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stack.callback(_release_mounts)
        patch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        base = make_base(CACHE / "base.tar")
        made = subprocess.run(
            ["make", "--no-print-directory", "-s", "images", f"BASE={base}", "TAG=test", "BUILDER=buildah"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr[-4000:]
        lines = made.stdout.splitlines()
        names = [line.split()[0] for line in lines]
        pods = {name.split("kinoflow-")[1].split(":")[0]: stack.enter_context(mounted(name)) for name in names}
        yield Built(lines, pods)


def _release_mounts() -> None:
    """Buildah leaves the stages mounted that a build has mounted from."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    for place in reversed([line.split()[1] for line in lines if line.split()[1].startswith(str(CACHE))]):
        subprocess.run(["umount", place], capture_output=True, check=False)


@pytest.fixture(scope="session")
def packages(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each image the names and versions of its Python packages, as its own Python sees them."""
    code = (
        "import importlib.metadata as m, json, re\n"
        "print(json.dumps({re.sub(r'[-_.]+', '-', d.name).lower(): d.version for d in m.distributions()}))"
    )
    found = {}
    for target, pod in built.pods.items():
        told = pod.run(["python", "-c", code], tmp_path_factory.mktemp(target))
        found[target] = json.loads(told.stdout)
    return found
