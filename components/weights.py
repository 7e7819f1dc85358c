"""Weights that were not trained here: imported, checked and published for a stage to start from; exported again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from components import manifest, store
from components.errors import KinoflowError
from components.manifest import Manifest
from model.checkpoint import CONFIG, EMA_WEIGHTS, WEIGHTS
from model.released import DIFFUSERS_WEIGHTS, ReleasedWeights, read_released, starting_weights, write_released
from model.stdit2 import STDiT2

KIND = "weights"


def import_weights(source: str, out: str, *, model_max_length: int | None = None, seed: int = 0) -> Manifest:
    """Check weights from elsewhere and publish them in the released form: config.json and model.safetensors.

    A folder that has this form already is published byte for byte.

    Args:
        source: folder (or S3 prefix) or .safetensors file; see `model.released.read_released`.
        out: URI prefix.
        model_max_length: text tokens of an image network made into a video network.
        seed: of what an image network lacks.

    Raises:
        KinoflowError: the weights cannot be read or are not those of the network.
    """
    with _local(source) as folder:
        try:
            released = read_released(folder, model_max_length=model_max_length, seed=seed)
        except ValueError as error:
            raise KinoflowError(str(error)) from error
        settings: dict[str, JsonValue] = {"model_max_length": model_max_length, "seed": seed}
        with manifest.publish(out, KIND, config=settings, inputs={}) as publication:
            _write(released, publication.directory)
            publication.facts.update(
                layout=released.layout,
                tensors=len(released.weights),
                parameters=sum(tensor.numel() for tensor in released.weights.values()),
            )
            publication.annotations["source"] = source
    assert publication.manifest is not None
    return publication.manifest


def export_weights(checkpoint: str, out: str, *, use_ema: bool = False) -> list[str]:
    """Write a checkpoint, or imported weights, as a released folder: config.json and model.safetensors.

    Args:
        checkpoint: URI of either.
        out: URI prefix or folder; files of these names in it are replaced.
        use_ema: the moving average in place of the trained weights.

    Returns:
        URIs of the two files.
    """
    published = manifest.load(checkpoint)
    name = EMA_WEIGHTS if use_ema else WEIGHTS
    if name not in published.files or CONFIG not in published.files:
        raise KinoflowError(f"{checkpoint} ({published.kind}) holds no {name}; give the URI of a checkpoint.")
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        manifest.fetch(checkpoint, Path(scratch), [CONFIG, name])
        written = []
        for file, target in ((CONFIG, CONFIG), (name, WEIGHTS)):
            written.append(store.join(out, target))
            store.upload(Path(scratch) / file, written[-1])
    return written


def load_into(network: STDiT2, uri: str, scratch: Path) -> None:
    """Give a network that is to be trained the weights published at `uri`.

    Raises:
        KinoflowError: they are of another network.
    """
    manifest.fetch(uri, scratch, kind=KIND)
    try:
        network.load_state_dict(starting_weights(scratch, network.config))
    except ValueError as error:
        raise KinoflowError(f"Training cannot start from {uri}: {error}") from error


def _write(released: ReleasedWeights, directory: Path) -> None:
    if released.source is not None:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(released.source / name, directory / name)
        return
    write_released(directory, released.config, released.weights)


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """The source as a local path; from S3 the files that are read are copied."""
    if not store.is_s3(source):
        if not Path(source).exists():
            raise KinoflowError(f"{source} does not exist; give a folder of weights or a .safetensors file.")
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        for name in (CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS):
            if store.exists(store.join(source, name)):
                store.download(store.join(source, name), Path(scratch) / name)
        yield Path(scratch)
