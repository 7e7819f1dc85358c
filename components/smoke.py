"""What an image holds: `python -m components.smoke train` imports what its tasks import and prints versions.

It ends with 1 and a sentence when a package is missing, or when nothing can be written where tasks write.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile

from components.errors import KinoflowError, missing_package

DATA = (
    "components.ingest",
    "components.curate",
    "components.curate.caption_endpoint",
    "components.pack",
    "onnxruntime",
)
TRAIN = (
    *DATA, "components.curate.caption_model", "components.bucket", "components.train", "components.evaluate",
    "components.tracking", "diffusers.models.autoencoders.autoencoder_kl", "matplotlib.figure", "mlflow", "pandas",
    "psutil", "tokenizers", "transformers.models.t5.modeling_t5", "transformers.models.auto.tokenization_auto",
)  # fmt: skip
SUBMIT = (
    "components.store.check", "pipelines.cli", "pipelines.doctor", "pipelines.kubernetes_checks", "pipelines.submit",
    "pipelines.text_to_video",
)  # fmt: skip
TASKS = ("kfp.dsl.executor_main", "pipelines.shell", "boto3", "minio")
TARGETS = {"data": (*TASKS, *DATA), "train": (*TASKS, *TRAIN), "submit": SUBMIT}
SHOWN = ("kinoflow", "kfp", "numpy", "polars", "boto3", "av", "opencv-python-headless", "torch", "mlflow-skinny")


def check(target: str) -> list[str]:
    """Import what the tasks of an image import; returns lines that say what is there.

    Raises:
        KinoflowError: there is no such image, a package is missing, or the folder for temporary files is closed.
    """
    if target not in TARGETS:
        raise KinoflowError(f"There is no image {target!r}; take one of {', '.join(TARGETS)}.")
    if target != "submit":
        os.environ["_KFP_RUNTIME"] = "true"  # as in a task: Kubeflow's executor without the rest of Kubeflow
    for name in TARGETS[target]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise KinoflowError(f"{name} cannot be imported. {missing_package(error)}") from error
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        raise KinoflowError(f"No temporary file can be written ({error}); mount a volume at /tmp.") from error
    return [f"{'python':<24}{platform.python_version()}", *_versions()]


def _versions() -> list[str]:
    found = {}
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return [f"{name:<24}{version}" for name, version in found.items()]


def main() -> None:
    """Print what the image of that name holds; the exit code is 1 when something is missing."""
    try:
        lines = check(sys.argv[1] if len(sys.argv) > 1 else "train")
    except KinoflowError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
