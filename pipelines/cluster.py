"""What a pod of the compiled graph gets from its namespace: addresses, credentials, GPUs.

The names are those of the chart `charts/workspace`. Only references are compiled in, never an address or a secret.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from components.config import Section

ADDRESSES = (
    "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "MLFLOW_TRACKING_URI",
)  # fmt: skip
CREDENTIALS = {"accessKeyId": "AWS_ACCESS_KEY_ID", "secretAccessKey": "AWS_SECRET_ACCESS_KEY"}
GPU = "nvidia.com/gpu"


class Cluster(Section):
    """Where pods find what they need."""

    store_secret: str = Field("kinoflow-store", description="Secret with the keys accessKeyId and secretAccessKey.")
    addresses: str = Field("kinoflow-addresses", description="ConfigMap with the environment of the services.")
    gpus: int = Field(0, ge=0, description="GPUs of each task that computes with the network or the encoders.")

    def equip(self, task: Any, *, computes: bool) -> None:
        """Give one task of the graph its environment and, if it computes, its GPUs."""
        from kfp import kubernetes

        kubernetes.use_config_map_as_env(task, self.addresses, {name: name for name in ADDRESSES})
        kubernetes.use_secret_as_env(task, self.store_secret, CREDENTIALS)
        if computes and self.gpus:
            task.set_accelerator_type(GPU).set_accelerator_limit(self.gpus)
