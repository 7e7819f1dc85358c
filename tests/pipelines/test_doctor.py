"""`kinoflow doctor` against small API servers over HTTP: what it finds, says, and does not pass over in silence."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.findings import Finding
from pipelines.cli import main
from pipelines.cluster import ADDRESSES, CREDENTIALS, Cluster
from pipelines.doctor import check_cluster, check_kubeflow, check_tracking
from pipelines.kubeflow import KubeflowSettings
from tests.conftest import S3Server
from tests.kfp_server import KfpServer
from tests.kubernetes_server import KubernetesServer, node

SPACE = "/api/v1/namespaces/team-a"
KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
PLANTED = "planted-secret-4711"
CLUSTER = Cluster.model_validate({
    "queue": "team-a",
    "train": {
        "gpus": 8, "gpu_product": "NVIDIA-H200", "memory": "512Gi", "shared_memory": "64Gi", "scratch": "200Gi",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "secrets": {"hub": {"token": "HF_TOKEN"}},
    },
})  # fmt: skip
GPU_NODE = node(
    "gpu-1", labels={"nvidia.com/gpu.product": "NVIDIA-H200"}, taint="nvidia.com/gpu=present:NoSchedule",
    gpu="8", memory="1Ti", **{"ephemeral-storage": "2Ti"},
)  # fmt: skip


def listed(kind: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": "v1", "metadata": {}, "items": list(items)}


def secret(*keys: str) -> dict[str, Any]:
    return {"metadata": {"name": "x"}, "data": {key: base64.b64encode(PLANTED.encode()).decode() for key in keys}}


def whole() -> dict[str, Any]:
    """A cluster that has all that CLUSTER asks for."""
    quota = {"hard": {"requests.nvidia.com/gpu": "16"}, "used": {"requests.nvidia.com/gpu": "4"}}
    version = dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"), "x")
    flavor = {"name": "h200", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": 16}]}
    return {
        "/version/": {**version, "major": "1", "minor": "34+", "gitVersion": "v1.34.2"},
        f"{SPACE}/secrets/kinoflow-store": secret(*CREDENTIALS),
        f"{SPACE}/secrets/hub": secret("token"),
        f"{SPACE}/configmaps/kinoflow-addresses": {"data": dict.fromkeys(ADDRESSES, "x")},
        "/api/v1/nodes": listed("NodeList", node("cpu-1"), GPU_NODE),
        f"{SPACE}/resourcequotas": listed(
            "ResourceQuotaList", {"metadata": {"name": "q"}, "spec": {"hard": quota["hard"]}, "status": quota}
        ),
        f"{KUEUE}/namespaces/team-a/localqueues/team-a": {"spec": {"clusterQueue": "all"}},
        f"{KUEUE}/clusterqueues/all": {"spec": {"resourceGroups": [{"flavors": [flavor]}]}},
    }


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KF_", "MLFLOW_", "KUBE", "KINOFLOW_")):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    made = KubernetesServer(whole())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    made = KfpServer()
    made.start()
    yield made
    made.stop()


def examined(server: KubernetesServer, tmp_path: Path, cluster: Cluster = CLUSTER) -> dict[str, Finding]:
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", "team-a")
    return {finding.check: finding for finding in check_cluster(cluster, kubeconfig, None, "")}


def test_a_cluster_that_has_everything(server: KubernetesServer, tmp_path: Path) -> None:
    found = examined(server, tmp_path)
    assert {finding.state for finding in found.values()} == {"ok"}, found
    assert found["Kubernetes"].seen == "v1.34.2, namespace team-a"
    assert found["nodes for train"].seen == "1 of 2 nodes, 8 x nvidia.com/gpu"
    assert found["quota of team-a"].seen == "12 nvidia.com/gpu left, 8 wanted"
    assert PLANTED not in str(found) and base64.b64encode(PLANTED.encode()).decode() not in str(found)


def test_nodes_that_train_together_must_all_be_there(server: KubernetesServer, tmp_path: Path) -> None:
    train = {**CLUSTER.train.model_dump(), "nodes": 2, "runtime": "kinoflow-2x8"}
    found = examined(server, tmp_path, Cluster.model_validate({**CLUSTER.model_dump(), "train": train}))
    assert found["nodes for train"].seen == "1 nodes have all of it, 2 are to train together"
    assert found["quota of team-a"].seen == "q: 12 of 16 nvidia.com/gpu left, 16 wanted"


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "check", "seen", "advice"),
    [
        (lambda a: a.pop(f"{SPACE}/secrets/hub"), "secret hub", "none in team-a", "chart workspace"),
        (lambda a: a.update({f"{SPACE}/secrets/kinoflow-store": secret("accessKeyId")}), "secret kinoflow-store",
         "lacks secretAccessKey", "Add the key secretAccessKey"),
        (lambda a: a[f"{SPACE}/configmaps/kinoflow-addresses"]["data"].pop("MLFLOW_TRACKING_URI"),
         "config map kinoflow-addresses", "lacks MLFLOW_TRACKING_URI", "Add the key"),
        (lambda a: a.update({"/api/v1/nodes": listed("NodeList", node("cpu-1"), node(
            "gpu", gpu="8", labels={"nvidia.com/gpu.product": "NVIDIA-A100"}))}), "nodes for train",
         "no ready node has nvidia.com/gpu.product=NVIDIA-H200", "GPUs there: NVIDIA-A100"),
        (lambda a: a.update({"/api/v1/nodes": listed("NodeList", node(
            "gpu", taint="spot=yes:NoSchedule", labels={"nvidia.com/gpu.product": "NVIDIA-H200"}))}), "nodes for train",
         "all with taints", "Add a toleration for spot=yes:NoSchedule"),
        (lambda a: a.update({"/api/v1/nodes": listed("NodeList", node(
            "gpu", labels={"nvidia.com/gpu.product": "NVIDIA-H200"}))}), "nodes for train",
         "nvidia.com/gpu: 8 wanted, at most 0", "chart gpu-nodes"),
        (lambda a: a.update({"/api/v1/nodes": listed("NodeList", node(
            "gpu", gpu="8", labels={"nvidia.com/gpu.product": "NVIDIA-H200"}))}), "nodes for train",
         "memory: ", "larger nodes"),
        (lambda a: a.update({"/api/v1/nodes": listed("NodeList", node("gpu", ready=False))}), "nodes for ingest",
         "no node is ready", "Label"),
        (lambda a: a[f"{SPACE}/resourcequotas"]["items"][0]["status"]["used"].update({"requests.nvidia.com/gpu": "12"}),
         "quota of team-a", "q: 4 of 16 nvidia.com/gpu left, 8 wanted", "raised"),
        (lambda a: a.pop(f"{KUEUE}/namespaces/team-a/localqueues/team-a"), "Kueue's queue", "no local queue team-a",
         "install Kueue"),
        (lambda a: a.pop(f"{KUEUE}/clusterqueues/all"), "Kueue's queue", "all does not exist", "Make it"),
        (lambda a: a[f"{KUEUE}/clusterqueues/all"]["spec"].update({"resourceGroups": []}), "Kueue's queue",
         "has 0 nvidia.com/gpu", "wait for ever"),
        (lambda a: a["/version/"].update({"minor": "29", "gitVersion": "v1.29.1"}), "Kubernetes", "v1.29.1", "upgrade"),
    ],
)  # fmt: skip
def test_what_is_missing_is_found_with_advice(
    server: KubernetesServer, tmp_path: Path, change: Change, check: str, seen: str, advice: str
) -> None:
    change(server.answers)
    finding = examined(server, tmp_path)[check]
    assert finding.state == "failed"
    assert seen in finding.seen and advice in finding.advice


def test_what_may_not_be_read_is_not_passed_in_silence(server: KubernetesServer, tmp_path: Path) -> None:
    server.forbidden |= {"/api/v1/nodes", f"{SPACE}/secrets/hub", f"{SPACE}/resourcequotas"}
    found = examined(server, tmp_path)
    assert found["nodes for train"] == Finding("nodes for train", "not checked", "this account may not read nodes")
    assert found["secret hub"].state == found["quota of team-a"].state == "not checked"
    assert found["secret kinoflow-store"].state == "ok"
    plain = examined(server, tmp_path, Cluster())["Kueue's queue"]
    assert (plain.state, plain.seen) == ("not checked", "the cluster's settings name no queue")


def test_no_server_no_kubeconfig_and_wrong_credentials(server: KubernetesServer, tmp_path: Path) -> None:
    wrong = server.write_kubeconfig(tmp_path / "wrong", "team-a", token="other")
    found = check_cluster(CLUSTER, wrong, None, "")
    assert found[0].state == "failed" and "answers 401" in found[0].seen
    assert {finding.state for finding in found[1:]} == {"not checked"}
    found = check_cluster(CLUSTER, tmp_path / "nothing", None, "")
    assert found[0].state == "failed" and "KUBECONFIG" in found[0].advice
    gone = server.write_kubeconfig(tmp_path / "gone", "team-a")
    gone.write_text(gone.read_text().replace(str(server.port), "9"))
    assert "does not answer" in check_cluster(CLUSTER, gone, None, "")[0].seen


def test_many_gpus_want_shared_memory(server: KubernetesServer, tmp_path: Path) -> None:
    finding = examined(server, tmp_path, Cluster.model_validate({"train": {"gpus": 2}}))["/dev/shm of train"]
    assert finding.state == "failed" and "train.shared_memory" in finding.advice


def test_kubeflow_and_mlflow(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = check_kubeflow(KubeflowSettings(endpoint=kfp.url))
    assert finding.state == "ok" and kfp.url in finding.seen
    assert check_kubeflow(KubeflowSettings()).state == "failed"
    kfp.behaviour.token = "right"
    assert "wants a token" in check_kubeflow(KubeflowSettings(endpoint=kfp.url)).seen
    assert check_tracking("").state == "not checked"
    assert [check_tracking(wrong).state for wrong in ("sqlite:///x.db", "http://")] == ["failed"] * 2
    assert check_tracking("http://mlflow.kinoflow.svc:5000").state == "not checked"
    assert check_tracking("http://user:hidden@127.0.0.1:9").state == "failed"
    assert "hidden" not in check_tracking("http://user:hidden@127.0.0.1:9").seen


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kinoflow", "doctor", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_prints_a_table_and_advice(
    server: KubernetesServer, kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", "team-a")
    given = ["--kubeconfig", str(kubeconfig), "--host", kfp.url]
    code, shown = call(monkeypatch, *given), capsys.readouterr().out
    assert code == 0 and "Kubeflow Pipelines" in shown and "not checked" in shown
    server.answers.pop(f"{SPACE}/secrets/kinoflow-store")
    code, shown = call(monkeypatch, *given), capsys.readouterr().out
    assert code == 1
    assert "secret kinoflow-store: Make it in the namespace team-a, or install the chart workspace there." in shown


def test_the_command_tries_a_store_out(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KINOFLOW_STORE_PATIENCE_S", "10")
    assert call(monkeypatch, "--store", s3_server.bucket()) == 0
    shown = capsys.readouterr().out
    assert "concurrent writers" in shown and "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required" in shown
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in shown
