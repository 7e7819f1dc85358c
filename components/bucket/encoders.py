"""The two frozen encoders of a run: loaded from folders, or made from the training clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components import manifest, progress, store
from components.bucket.encode import Window, fitting_frames
from components.config import BucketConfig
from components.errors import KinoflowError
from model.autoencoder import Autoencoder, fit_autoencoder, load_autoencoder
from model.text import TextEncoder, build_text_encoder, load_text_encoder


@dataclass(frozen=True)
class EncoderSources:
    """Local folders of the given encoders, None for those that are to be made.

    Attributes:
        digests: Of each given folder's files, by encoder name.
    """

    autoencoder: Path | None
    text_encoder: Path | None
    digests: dict[str, str]

    @classmethod
    def open(cls, config: BucketConfig, scratch: Path) -> EncoderSources:
        """Fetch what lies in a store and take the digest of everything.

        Raises:
            KinoflowError: A folder is empty or missing.
        """
        uris = {"autoencoder": config.autoencoder_folder, "text_encoder": config.text_encoder_folder}
        folders = {name: _local_folder(uri, scratch / name) for name, uri in uris.items() if uri is not None}
        digests = {name: _folder_digest(folder) for name, folder in folders.items()}
        return cls(folders.get("autoencoder"), folders.get("text_encoder"), digests)


def _local_folder(uri: str, scratch: Path) -> Path:
    found = store.list_objects(uri)
    if not found:
        raise KinoflowError(f"The encoder folder {uri} does not exist or is empty; check the config.")
    if not store.is_s3(uri):
        return Path(uri)
    for item in found:
        store.download(store.join(uri, item.key), scratch / store.safe_key(item.key))
    return scratch


def _folder_digest(folder: Path) -> str:
    files = {item.key: manifest.sha256_file(folder / item.key) for item in store.list_objects(str(folder))}
    return manifest.digest_of(dict(files))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_autoencoder(folder: Path | None, config: BucketConfig, windows: Sequence[Window], objects: str) -> Autoencoder:
    """The autoencoder of `folder`, or one fitted to frames of the training windows.

    Raises:
        KinoflowError: The folder holds no readable autoencoder.
    """
    if folder is not None:
        try:
            return load_autoencoder(folder).to(_device())
        except ValueError as error:
            raise KinoflowError(str(error)) from error
    frames = fitting_frames(windows, objects)
    steps = config.autoencoder.steps
    with progress.task("fit the autoencoder", steps) as task:
        return fit_autoencoder(
            frames,
            config.autoencoder,
            lambda step, _, psnr_db: task.update(step, f"{psnr_db:.1f} dB"),
        ).to(_device())


def make_text_encoder(folder: Path | None, config: BucketConfig, captions: Sequence[str]) -> TextEncoder:
    """The text encoder of `folder`, or one whose vocabulary is the words of the training captions.

    Raises:
        KinoflowError: The folder holds no readable T5 encoder, or no caption has a word.
    """
    try:
        encoder = load_text_encoder(folder) if folder is not None else build_text_encoder(captions, config.text_encoder)
    except ValueError as error:
        raise KinoflowError(f"No text encoder can be had: {error}") from error
    return encoder.to(_device())
