"""What a pod of the compiled graph gets from its namespace: addresses, credentials, nodes, devices, time.

The names are those of the chart `charts/workspace`. Only references are compiled in, never an address or a secret.

Kubeflow restarts a task after any failure and cannot be told of exit codes, so one number of retries serves
preemptions (exit code 75) and errors alike: a preempted stage goes on from what it saved, a mistake in the input ends
each attempt within seconds, before any work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from components.config import Section, load, parse
from components.errors import KinoflowError

ADDRESSES = (
    "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "MLFLOW_TRACKING_URI",
)  # fmt: skip
CREDENTIALS = {"accessKeyId": "AWS_ACCESS_KEY_ID", "secretAccessKey": "AWS_SECRET_ACCESS_KEY"}
RUN_VARIABLE = "KINOFLOW_RUN"
"""Kubeflow's id of the run, which replaces `{run}` in a task's inputs (`pipelines.shell`)."""
POD_VARIABLE, NAMESPACE_VARIABLE = "KINOFLOW_POD", "KINOFLOW_NAMESPACE"
TRAINJOB_VARIABLE = "KINOFLOW_TRAINJOB"
"""Tells a task that trains to wait for a TrainJob instead; a `Placement` as JSON."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
GPU = "nvidia.com/gpu"
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"  # set by NVIDIA's GPU feature discovery
TaskKind = Literal["ingest", "curate", "bucket", "train", "evaluate"]
TASK_KINDS: tuple[TaskKind, ...] = ("ingest", "curate", "bucket", "train", "evaluate")
AROUND = ("configure", "outcome")
"""Tasks that only look at what was filled in, and write down how the run ended."""
COMPUTING: tuple[TaskKind, ...] = ("bucket", "train", "evaluate")

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTORS = {"m": 1e-3, "": 1.0} | {
    f"{letter}{i}": (1024.0 if i else 1000.0) ** power
    for power, letter in enumerate("kMGTP", 1) for i in ("", "i")
} | {"Ki": 1024.0}  # fmt: skip
_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESOURCE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_WORDS = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|(^|_)(API_?)?KEY(_|$)", re.IGNORECASE)


def quantity(text: str) -> float:
    """A Kubernetes quantity such as `500m`, `16` or `64Gi` as a number.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(text)
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is no quantity above 0; write for example 500m, 16 or 64Gi")
    return float(match[1]) * _FACTORS[match[2] or ""]


def _is_quantity(text: str) -> str:
    quantity(text)
    return text


Quantity = Annotated[str, AfterValidator(_is_quantity)]


class Toleration(Section):
    """A taint of nodes that pods put up with."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] = ""
    seconds: int | None = Field(None, ge=0, description="How long a pod stays after the taint came.")

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"a toleration with the operator Exists has no value, not {self.value!r}")
        if not self.key and self.operator == "Equal":
            raise ValueError("a toleration without a key tolerates everything; say so with the operator Exists")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("a toleration's seconds count for the effect NoExecute only")
        return self


class Retries(Section):
    """How often a task is started again by Kubeflow, whatever ended it."""

    count: int = Field(3, ge=0, le=100)
    backoff_s: int = Field(60, ge=0, description="Before the first retry.")
    factor: float = Field(2.0, ge=1, description="Each further wait is so many times as long.")
    max_backoff_s: int = Field(3600, ge=1, description="No wait is longer.")


class Pods(Section):
    """Pods of one kind of task."""

    gpus: int | None = Field(None, ge=0, description="Of each pod; the cluster's own number when absent.")
    gpu_resource: str = Field(GPU, description="What the device plugin calls one, e.g. nvidia.com/mig-1g.10gb.")
    gpu_product: str | None = Field(None, description="Only nodes of this kind, e.g. NVIDIA-H200.")
    cpu: Quantity | None = Field(None, description="Cores, requested and limited.")
    memory: Quantity | None = Field(None, description="Requested and limited; /dev/shm counts as memory.")
    shared_memory: Quantity | None = Field(None, description="Size of /dev/shm; the runtime's 64 MiB when absent.")
    scratch: Quantity | None = Field(None, description="Size of a volume at /tmp that lives as long as the pod.")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    secrets: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Secrets as environment: name of the secret, its keys, their variables."
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Plain settings; nothing secret.")
    timeout_s: int | None = Field(None, ge=1, description="Of one attempt.")
    retries: Retries | None = None

    @field_validator("node_selector")
    @classmethod
    def _labels(cls, given: dict[str, str]) -> dict[str, str]:
        for name in (*given, *filter(None, given.values())):
            if not _LABEL.fullmatch(name):
                raise ValueError(f"{name!r} is no label of a node")
        return given

    @field_validator("environment")
    @classmethod
    def _nothing_secret(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable")
            if _SECRET_WORDS.search(name):
                raise ValueError(
                    f"{name} looks like a secret, which the compiled file would show; put it into a secret"
                )
        return given

    @model_validator(mode="after")
    def _checks(self) -> Self:
        taken = {*ADDRESSES, *CREDENTIALS.values(), RUN_VARIABLE, POD_VARIABLE, NAMESPACE_VARIABLE, TRAINJOB_VARIABLE}
        for secret, keys in self.secrets.items():
            if not _RESOURCE_NAME.fullmatch(secret):
                raise ValueError(f"{secret!r} is no name of a secret")
            for variable in keys.values():
                if not _VARIABLE.fullmatch(variable):
                    raise ValueError(f"secret {secret}: {variable!r} is no name of a variable")
                if variable in taken or variable in self.environment:
                    raise ValueError(f"secret {secret}: the variable {variable} is set already")
                taken.add(variable)
        if both := taken & set(self.environment):
            raise ValueError(f"the variable {min(both)} is set already")
        if self.memory and self.shared_memory and quantity(self.shared_memory) >= quantity(self.memory):
            raise ValueError(f"/dev/shm of {self.shared_memory} counts as memory, of which there is {self.memory}")
        if self.gpu_product and self.node_selector.get(GPU_PRODUCT_LABEL, self.gpu_product) != self.gpu_product:
            raise ValueError("gpu_product and node_selector name different GPUs")
        return self


class TrainPods(Pods):
    """Pods of the tasks that train: one, or as many as a TrainJob of Kubeflow Trainer starts together."""

    nodes: int = Field(1, ge=1, description="Pods that train together, each with `gpus`; above 1 by a TrainJob.")
    runtime: str | None = Field(None, description="Training runtime of the TrainJob; with it one node is a job too.")
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "TrainingRuntime"
    service_account: str | None = Field(None, description="Of the TrainJob's pods; the runtime's own when absent.")

    @model_validator(mode="after")
    def _has_a_runtime(self) -> Self:
        if self.nodes > 1 and not self.runtime:
            raise ValueError(f"{self.nodes} nodes train by a TrainJob, which needs a runtime; name one, for example of "
                             "the chart workspace's `runtimes`")  # fmt: skip
        for name in filter(None, (self.runtime, self.service_account)):
            if not _RESOURCE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a Kubernetes object; take small letters, digits and '-'")
        return self


class Cluster(Section):
    """Where pods find what they need."""

    store_secret: str = Field("kinoflow-store", description="Secret with the keys accessKeyId and secretAccessKey.")
    addresses: str = Field("kinoflow-addresses", description="ConfigMap with the environment of the services.")
    gpus: int = Field(0, ge=0, description="GPUs of each task that computes with the network or the encoders.")
    queue: str | None = Field(None, description="Kueue's local queue that admits the pods.")
    ingest: Pods = Pods()
    curate: Pods = Pods()
    bucket: Pods = Pods()
    train: TrainPods = TrainPods()
    evaluate: Pods = Pods()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in (self.store_secret, self.addresses, *([self.queue] if self.queue else [])):
            if not _RESOURCE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a Kubernetes object; take small letters, digits and '-'")
        return self

    def pods(self, kind: TaskKind) -> Pods:
        """What the pods of one kind of task are like."""
        found: Pods = getattr(self, kind)
        return found

    def gpus_of(self, kind: TaskKind) -> int:
        """GPUs of each pod of that kind."""
        own = self.pods(kind).gpus
        return own if own is not None else self.gpus if kind in COMPUTING else 0

    def check_ranks(self, training: Any) -> None:
        """Find out whether the GPUs of training tasks would be used.

        Args:
            training: `pipelines.config.TrainingDefaults`.

        Raises:
            KinoflowError: some would idle, or ranks and batches do not fit together.
        """
        gpus = self.gpus_of("train")
        each = training.processes or max(gpus, 1)
        ranks = self.train.nodes * each
        asked = f"{self.train.nodes} nodes with {each} processes each" if self.train.nodes > 1 else f"{each} processes"
        if gpus and each != gpus:
            raise KinoflowError(f"training.processes is {each}, but training pods have {gpus} GPUs; leave it out.")
        if ranks > 1 and training.parallel == "none":
            raise KinoflowError(f"{asked} train, but training.parallel is 'none'; choose 'ddp' or 'fsdp'.")
        if training.parallel == "none":
            return
        if ranks % training.sequence_parallel:
            raise KinoflowError(f"{asked} cannot form groups of training.sequence_parallel "
                                f"{training.sequence_parallel}; choose one that divides {ranks}.")  # fmt: skip
        groups = ranks // training.sequence_parallel
        if training.batches_per_step % groups:
            raise KinoflowError(f"{asked} share the batches of a step, but training.batches_per_step is "
                                f"{training.batches_per_step}; choose a multiple of {groups}.")  # fmt: skip

    def equip(self, task: Any, image: str, *, computes: bool) -> None:
        """Give one task of the graph its environment, its place and, if it computes, its GPUs.

        A task that trains by a TrainJob only waits for it: place, devices and secrets are the job's.
        """
        from kfp import kubernetes

        name = task.component_spec.name
        kind: TaskKind = name if name in TASK_KINDS else "bucket" if computes else "curate"
        pods, gpus = self.pods(kind), self.gpus_of(kind)
        kubernetes.use_config_map_as_env(task, self.addresses, {name: name for name in ADDRESSES})
        kubernetes.use_secret_as_env(task, self.store_secret, CREDENTIALS)
        kubernetes.use_field_path_as_env(task, RUN_VARIABLE, "metadata.labels['pipeline/runid']")
        if name in AROUND:
            if self.train.runtime:
                kubernetes.use_field_path_as_env(task, NAMESPACE_VARIABLE, "metadata.namespace")
            return
        _time(task, pods, waits=kind == "train" and bool(self.train.runtime))
        if kind == "train" and self.train.runtime:
            kubernetes.use_field_path_as_env(task, POD_VARIABLE, "metadata.name")
            kubernetes.use_field_path_as_env(task, NAMESPACE_VARIABLE, "metadata.namespace")
            task.set_env_variable(TRAINJOB_VARIABLE, Placement(image=image, cluster=self).model_dump_json())
            return
        for secret, keys in sorted(pods.secrets.items()):
            kubernetes.use_secret_as_env(task, secret, keys)
        for variable, value in sorted(pods.environment.items()):
            task.set_env_variable(variable, value)
        if self.queue:
            kubernetes.add_pod_label(task, QUEUE_LABEL, self.queue)
        if gpus:
            task.set_accelerator_type(pods.gpu_resource).set_accelerator_limit(gpus)
        _size(task, pods)
        _place(task, pods, with_gpus=bool(gpus))


class Placement(Section):
    """What the task that waits for a TrainJob is told of it."""

    image: str
    cluster: Cluster


def _size(task: Any, pods: Pods) -> None:
    from kfp import kubernetes

    if pods.cpu:
        task.set_cpu_request(pods.cpu).set_cpu_limit(pods.cpu)
    if pods.memory:
        task.set_memory_request(pods.memory).set_memory_limit(pods.memory)
    if pods.shared_memory:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", pods.shared_memory)
    if pods.scratch:
        kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=pods.scratch)


def node_selector(pods: Pods, *, with_gpus: bool) -> dict[str, str]:
    """Labels of the nodes that pods may run on."""
    product = {GPU_PRODUCT_LABEL: pods.gpu_product} if with_gpus and pods.gpu_product else {}
    return dict(sorted({**pods.node_selector, **product}.items()))


def _place(task: Any, pods: Pods, *, with_gpus: bool) -> None:
    from kfp import kubernetes

    for label, value in node_selector(pods, with_gpus=with_gpus).items():
        kubernetes.add_node_selector(task, label, value)
    for one in pods.tolerations:
        kubernetes.add_toleration(
            task, one.key or None, one.operator, one.value or None, one.effect or None, one.seconds
        )  # fmt: skip


def _time(task: Any, pods: Pods, *, waits: bool) -> None:
    from kfp import kubernetes

    if pods.timeout_s and not waits:
        kubernetes.set_timeout(task, pods.timeout_s)
    if pods.retries and pods.retries.count:
        task.set_retry(
            pods.retries.count, f"{pods.retries.backoff_s}s", pods.retries.factor, f"{pods.retries.max_backoff_s}s"
        )


def choose_cluster(file: Path | None, section: Cluster | None, changes: Mapping[str, Any]) -> Cluster:
    """The cluster of a file, else the preset's section, else the defaults; then what the command line says.

    Args:
        file: YAML with the fields of `Cluster`.
        section: `cluster` of a preset.
        changes: values given on the command line; None is not given.

    Raises:
        KinoflowError: the file cannot be read, or breaks a rule.
    """
    base = load(Cluster, file) if file else section or Cluster()
    given = {name: value for name, value in changes.items() if value is not None}
    return parse(Cluster, {**base.model_dump(), **given}, f"cluster {file}" if file else "cluster") if given else base
