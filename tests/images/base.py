"""Makes what the images are made from where no registry can be reached: Debian with Python, from Debian's mirror."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

NAME = "localhost/kinoflow-base:bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,ca-certificates"
UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def make_base(archive: Path) -> str:
    """Bring the base into buildah's storage, from `archive` when it was made before; returns its name."""
    if (
        subprocess.run(["buildah", "inspect", "--type", "image", NAME], capture_output=True, check=False).returncode
        == 0
    ):
        return NAME
    if not archive.is_file():
        _bootstrap(archive)
    (archive.parent / "Base").write_text(f'FROM scratch\nADD {archive.name} /\nCMD ["python3"]\n')
    subprocess.run(
        ["buildah", "build", "--quiet", "--file", "Base", "--tag", NAME, "."], cwd=archive.parent, check=True,
        capture_output=True,
    )  # fmt: skip
    return NAME


def _bootstrap(archive: Path) -> None:
    """This machine's certificates go with it: a proxy of its own may stand before the package index."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-base-") as folder:
        root = Path(folder) / "root"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), MIRROR],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in UNUSED:
            shutil.rmtree(root / name, ignore_errors=True)
        if CERTIFICATES.is_file():
            shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        (root / "usr/bin/python").symlink_to("python3")
        partial = archive.with_suffix(".partial")
        subprocess.run(["tar", "-C", str(root), "--exclude=./dev/*", "-cf", str(partial), "."], check=True)
        partial.replace(archive)
