"""Builds the images of `components/Containerfile` with buildah, podman or docker: `make images`.

It needs nothing but Python, so that images can be built where Kinoflow is not installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from components.errors import KinoflowError

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("data", "train", "submit")
BUILDERS = ("buildah", "podman", "docker")
SOURCES = ("pyproject.toml", "requirements.lock", "components/Containerfile", "components/*.sh", "model/**/*",
           "components/**/*", "pipelines/**/*")  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What to build.

    Attributes:
        registry: before the images' names, for example `registry.example.org/team`; `localhost` when they stay here.
        tag: of every image.
        base: image that the images are made from.
        train_base: the same of `train`; `base` when empty.
        find_links: folder with wheels that the index lacks.
        index_url: Python package index.
        torch_backend: which build of torch, as uv names them (`cpu`, `cu130`); the index's own when empty.
        packages: of the system, for all images.
        push: bring them to the registry.
    """

    registry: str = "localhost"
    tag: str = "dev"
    base: str = ""
    train_base: str = ""
    find_links: str = ""
    index_url: str = ""
    torch_backend: str = ""
    packages: str = ""
    push: bool = False

    def name(self, target: str) -> str:
        """Of one image, with its tag."""
        return f"{self.registry}/kinoflow-{target}:{self.tag}"


@dataclass(frozen=True)
class Image:
    """One image that was built.

    Attributes:
        name: with its tag, or with the registry's digest once it is pushed.
        digest: of the image on this machine.
        size_bytes: unpacked.
    """

    name: str
    digest: str
    size_bytes: int


def find_builder() -> str:
    """The first builder that is there and works.

    Raises:
        KinoflowError: there is none.
    """
    for name in BUILDERS:
        if shutil.which(name) and _succeeds([name, "info" if name == "docker" else "--version"]):
            return name
    raise KinoflowError(f"Images need {', '.join(BUILDERS[:-1])} or {BUILDERS[-1]}; none of them works here.")


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 (hex) over the names and contents of everything the images are built from."""
    paths = {path for pattern in SOURCES for path in root.glob(pattern)}
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file() and path.suffix != ".pyc"):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def revision(root: Path = ROOT) -> str:
    """The commit that is checked out, with `-dirty` when files differ from it; `unknown` outside of Git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stdout.strip() or "unknown"


def build_command(builder: str, target: str, order: Order, flags: tuple[str, ...] = ()) -> list[str]:
    """The command that builds one image."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    arguments = {
        "BASE": (order.train_base if target == "train" else "") or order.base,
        "INDEX_URL": order.index_url,
        "PACKAGES": order.packages,
        "TORCH_BACKEND": order.torch_backend if target == "train" else "",
        "VERSION": version,
        "REVISION": revision(),
        "SOURCE_DIGEST": source_digest(),
    }
    wheels = ["--build-context", f"wheels={Path(order.find_links).resolve()}"] if order.find_links else []
    return [
        builder, "build", *(["--layers"] if builder == "buildah" else []), "--file", "components/Containerfile",
        "--target", target, "--tag", order.name(target), *wheels,
        *(part for key, value in arguments.items() if value for part in ("--build-arg", f"{key}={value}")),
        *flags, ".",
    ]  # fmt: skip


def build(
    order: Order, targets: tuple[str, ...] = TARGETS, builder: str = "", flags: tuple[str, ...] = ()
) -> list[Image]:
    """Build images one after another, and push them where that is asked for.

    Raises:
        KinoflowError: there is no builder, or it ended with an error, which it has printed itself.
    """
    builder = builder or find_builder()
    for target in targets:
        _run(build_command(builder, target, order, flags))
    names = [_push(builder, order.name(target)) if order.push else order.name(target) for target in targets]
    return [_inspect(builder, order.name(target), name) for target, name in zip(targets, names)]


def _push(builder: str, name: str) -> str:
    """Bring an image to its registry; returns its name by digest."""
    repository = name.rpartition(":")[0]
    if builder == "docker":
        _run([builder, "push", name])
        told = json.loads(_run([builder, "image", "inspect", name], quiet=True))[0]["RepoDigests"]
        return next(str(one) for one in told if str(one).startswith(f"{repository}@"))
    with tempfile.NamedTemporaryFile("r") as file:
        _run([builder, "push", "--digestfile", file.name, name])
        return f"{repository}@{file.read().strip()}"


def _inspect(builder: str, tagged: str, name: str) -> Image:
    if builder == "buildah":
        found = json.loads(_run([builder, "inspect", "--type", "image", tagged], quiet=True))
        size_bytes = _unpacked_bytes(builder, tagged)
        return Image(name, str(found["FromImageDigest"]), size_bytes)
    found = json.loads(_run([builder, "image", "inspect", tagged], quiet=True))[0]
    return Image(name, str(found.get("Digest") or found["Id"]), int(found["Size"]))


def _unpacked_bytes(builder: str, tagged: str) -> int:
    """Buildah rounds the size to three digits."""
    number, unit = str(json.loads(_run([builder, "images", "--json", tagged], quiet=True))[0]["size"]).split()
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


def _run(command: list[str], *, quiet: bool = False) -> str:
    """Run a command in the repository; its output is passed on to a person, or returned."""
    if not quiet:
        sys.stderr.write(f"{shlex.join(command)}\n")
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if quiet else sys.stderr, text=True, check=False)
    if done.returncode:
        raise KinoflowError(f"`{shlex.join(command[:2])} … {command[-1]}` ended with {done.returncode}; see above.")
    return done.stdout or ""


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def main() -> None:
    """Build, and print each image's name, digest and size."""
    parser = argparse.ArgumentParser(prog="python -m components.images", description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, help=f"some of {', '.join(TARGETS)}; all when absent")
    parser.add_argument("--builder", default="", help=f"{', '.join(BUILDERS)}; the first that works when absent")
    parser.add_argument("--flags", default="", help="further flags of the builder's build command")
    parser.add_argument("--push", action="store_true", help="bring the images to the registry")
    for name, words in (
        ("registry", "before the images' names"), ("tag", "of every image"), ("base", "image they are made from"),
        ("train-base", "the same of `train`"), ("find-links", "folder with wheels the index lacks"),
        ("index-url", "Python package index"), ("torch-backend", "build of torch: cpu, cu130, …"),
        ("packages", "of the system, for example 'gcc libc6-dev'"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default="", help=words)
    given = vars(parser.parse_args())
    targets, builder, flags = tuple(given.pop("targets")), given.pop("builder"), tuple(shlex.split(given.pop("flags")))
    order = Order(**{key: value for key, value in given.items() if value})
    try:
        if unknown := sorted(set(targets) - set(TARGETS)):
            raise KinoflowError(f"There is no image {unknown[0]!r}; take some of {', '.join(TARGETS)}.")
        images = build(order, targets, builder, flags)
    except KinoflowError as error:
        sys.exit(f"error: {error}")
    for image in images:
        sys.stdout.write(f"{image.name}  {image.digest}  {image.size_bytes / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
