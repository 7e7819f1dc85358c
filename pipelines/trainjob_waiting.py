"""The task that waits for a TrainJob: submits it or adopts the one of an earlier attempt, and follows it to its end.

Killed, the job goes on, and the next attempt of the task finds it by its name. Told to stop, the task asks whether the
run itself is being ended: then the job is deleted; else only this pod is moved elsewhere, and the job goes on. A job
belongs to the run's workflow, so that it never outlives it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from components.cli import EXIT_PREEMPTED, report_ending
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.train_command import train_command
from pipelines.cluster import NAMESPACE_VARIABLE, POD_VARIABLE, RUN_VARIABLE, Placement
from pipelines.kubernetes_checks import LIMITS_S, Failed, Kubernetes
from pipelines.trainjob import API, RUN_LABEL, STAGE_LABEL, STEP, job_name, render

logger = logging.getLogger(__name__)

POLL_S = 5.0
OUTAGE_S = 900.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
DELETION_S = 300.0
LAST_LINES = 20
WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")


class _Stopped(BaseException):
    """SIGTERM: the pod is to go."""


class Api:
    """The few calls of the Kubernetes API that following a job takes, patient while it is away.

    Args:
        namespace: of this pod.
        outage_s: how long a server that does not answer is waited for.
    """

    def __init__(self, namespace: str, outage_s: float = OUTAGE_S) -> None:
        try:
            self._kubernetes = Kubernetes(None, None, namespace or None)
        except Failed as error:
            raise KinoflowError(f"A TrainJob is wanted, but {error.seen}; this task runs in a cluster only.") from error
        self.namespace, self._outage_s = self._kubernetes.namespace, outage_s

    def job(self, name: str) -> dict[str, Any] | None:
        """The job; None when there is none."""
        return self._object("get TrainJobs", "get_namespaced_custom_object", *self._where(API), name)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """The job as it was made; None when there is one of that name."""
        return self._object("create TrainJobs", "create_namespaced_custom_object", *self._where(API), manifest)

    def delete(self, name: str) -> None:
        """Delete the job, and its pods before it."""
        self._ask(
            "delete TrainJobs", "delete_namespaced_custom_object", *self._where(API), name,
            propagation_policy="Foreground",
        )  # fmt: skip

    def jobs_of(self, run: str) -> list[dict[str, Any]]:
        """All jobs of a run."""
        found = self._object(
            "list TrainJobs", "list_namespaced_custom_object", *self._where(API), label_selector=f"{RUN_LABEL}={run}"
        )
        return list(found["items"]) if found else []

    def workflow(self, name: str) -> dict[str, Any] | None:
        """The workflow that runs Kubeflow's graph."""
        return self._object("get workflows", "get_namespaced_custom_object", *self._where(WORKFLOWS), name)

    def pod(self, name: str) -> Any:
        """One pod; None when there is none."""
        return self._ask("get pods", "read_namespaced_pod", name, self.namespace)

    def pods(self, job: str) -> list[Any]:
        """The job's pods, first node first, newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={job},jobset.sigs.k8s.io/replicatedjob-name={STEP}"
        found = self._ask("list pods", "list_namespaced_pod", self.namespace, label_selector=selector)
        newest = sorted(
            found.items if found else [], key=lambda pod: str(pod.metadata.creation_timestamp), reverse=True
        )
        return sorted(newest, key=_index)

    def log(self, pod: str, **options: Any) -> str:
        """Lines of a pod's training container; none when it has not started or is gone."""
        told = self._ask(
            "read logs",
            "read_namespaced_pod_log",
            pod,
            self.namespace,
            container=STEP,
            _preload_content=False,
            **options,
        )  # as bytes: the client would take a line of JSON apart
        return told.data.decode(errors="replace") if told else ""

    def _where(self, kind: tuple[str, str, str]) -> tuple[str, str, str, str]:
        return kind[0], kind[1], self.namespace, kind[2]

    def _object(self, what: str, call: str, *arguments: Any, **options: Any) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask(what, call, *arguments, **options)
        return found

    def _ask(self, what: str, call: str, *arguments: Any, **options: Any) -> Any:
        """One request, again and again while the server is away; None for something that is not (or already) there."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        core = self._kubernetes.core
        function = getattr(core if hasattr(core, call) else self._kubernetes.custom, call)
        deadline_s, wait_s = time.monotonic() + self._outage_s, FIRST_WAIT_S
        while True:
            try:
                return function(*arguments, **options, _request_timeout=LIMITS_S)
            except client.ApiException as error:
                if error.status in (404, 409) or (error.status == 400 and "log" in call):
                    return None
                if error.status in (401, 403):
                    raise KinoflowError(
                        f"The pod's service account may not {what} in {self.namespace} ({error.status}); install the "
                        "chart workspace there with rbac.trainJobs, and run pipelines as its account."
                    ) from error
                if error.status is not None and error.status < 500 and error.status != 429:
                    raise KinoflowError(f"Kubernetes refuses to {what} ({error.status}): {_told(error)}") from error
                reason = f"answers {error.status}"
            except (HTTPError, OSError) as error:
                reason = f"does not answer ({type(error).__name__})"
            if time.monotonic() + wait_s > deadline_s:
                sentence = f"The Kubernetes API {reason}; start again to go on following the TrainJob."
                report_ending(EXIT_PREEMPTED, sentence)
                logger.error("%s", sentence)
                sys.exit(EXIT_PREEMPTED)
            logger.warning("The Kubernetes API %s; once more in %.0f s.", reason, wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _told(error: Any) -> str:
    """What the server says of a refusal."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def _index(pod: Any) -> int:
    return int((pod.metadata.labels or {}).get("batch.kubernetes.io/job-completion-index", 0))


def train_by_job(
    placement: Placement,
    *,
    config: TrainConfig,
    tracking: TrackingConfig,
    data: str,
    parent: str | None,
    out: str,
    poll_s: float = POLL_S,
    outage_s: float = OUTAGE_S,
) -> None:
    """Train one stage by a TrainJob and wait for its end.

    Args:
        placement: where its pods run.
        config, tracking, data, parent, out: see `components.train.train`.
        poll_s: between two looks at the job.
        outage_s: how long an API server that is away is waited for.

    Raises:
        KinoflowError: the job failed, or is gone.
        SystemExit: this pod was told to stop, or the API server stays away; the job goes on unless the run ends.
    """
    api = Api(os.environ.get(NAMESPACE_VARIABLE, ""), outage_s)
    run, name = os.environ.get(RUN_VARIABLE, ""), job_name(os.environ.get(RUN_VARIABLE, ""), config.name, out)
    manifest = render(
        placement, train_command(config, tracking, data=data, parent=parent, out=out),
        name=name, namespace=api.namespace, processes=config.processes, owner=_owner(api),
        labels={STAGE_LABEL: config.name, **({RUN_LABEL: run} if run else {})},
    )  # fmt: skip
    try:
        with _told_to_stop():
            _submit_or_adopt(api, manifest, poll_s)
            Follower(api, name, poll_s).follow()
    except _Stopped:
        raise _stop(api, name) from None


@contextmanager
def _told_to_stop() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _owner(api: Api) -> dict[str, Any] | None:
    """A reference to the workflow of this pod, with which the job goes away."""
    pod = api.pod(os.environ[POD_VARIABLE]) if os.environ.get(POD_VARIABLE) else None
    for one in (pod.metadata.owner_references or []) if pod else []:
        if one.kind == "Workflow":
            return {"apiVersion": one.api_version, "kind": one.kind, "name": one.name, "uid": one.uid}
    return None


def _submit_or_adopt(api: Api, manifest: dict[str, Any], poll_s: float) -> None:
    name = manifest["metadata"]["name"]
    deadline_s = time.monotonic() + DELETION_S
    while True:
        there = api.job(name)
        if there is None:
            if api.create(manifest) is not None:
                nodes, each = (manifest["spec"]["trainer"][key] for key in ("numNodes", "numProcPerNode"))
                logger.info("TrainJob %s submitted: %d nodes, %d processes each.", name, nodes, each)
                return
            continue  # another attempt was faster: adopt its job
        if there["metadata"]["labels"].get(RUN_LABEL) != manifest["metadata"]["labels"].get(RUN_LABEL):
            raise KinoflowError(f"The TrainJob {name} belongs to another run; delete it, or name another place.")
        if "deletionTimestamp" not in there["metadata"]:
            if state_of(there)[0] != "failed":
                logger.info("TrainJob %s of an earlier attempt adopted.", name)
                return
            logger.info("TrainJob %s failed in an earlier attempt: submitted anew.", name)
            api.delete(name)
        if time.monotonic() > deadline_s:
            raise KinoflowError(f"The TrainJob {name} is being deleted for too long; look at its finalizers.")
        time.sleep(poll_s)


def _stop(api: Api, name: str) -> SystemExit:
    """What to end with; the job is deleted when its run is being ended."""
    if _run_is_ending(api):
        api.delete(name)
        sentence = f"The run is being ended; the TrainJob {name} is deleted."
    else:
        sentence = f"Told to stop; the TrainJob {name} goes on, start again to go on following it."
    report_ending(EXIT_PREEMPTED, sentence)
    logger.warning("%s", sentence)
    return SystemExit(EXIT_PREEMPTED)


def _run_is_ending(api: Api) -> bool:
    """Whether the workflow is being ended: Kubeflow sets its deadline to 0 seconds for that."""
    owner = _owner(api)
    if owner is None:
        return False
    workflow = api.workflow(owner["name"])
    if workflow is None or "deletionTimestamp" in workflow["metadata"]:
        return True
    spec = workflow.get("spec", {})
    return spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))


def delete_jobs(run: str, namespace: str) -> None:
    """Delete the jobs of a run that nobody waits for any more; what has ended stays to be looked at."""
    api = Api(namespace, outage_s=60.0)
    for job in api.jobs_of(run):
        if state_of(job)[0] not in ("failed", "complete"):
            logger.warning("TrainJob %s is deleted: its run has ended.", job["metadata"]["name"])
            api.delete(job["metadata"]["name"])


def state_of(job: dict[str, Any]) -> tuple[str, str]:
    """Where a job is: submitted, waiting (for the queue), running, complete or failed; and what the server says."""
    status = job.get("status", {})
    true = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
    for kind, state in (("Failed", "failed"), ("Complete", "complete"), ("Suspended", "waiting for its queue")):
        if kind in true:
            return state, str(true[kind].get("message") or true[kind].get("reason", ""))
    jobs = status.get("jobsStatus", [])
    ready = any(one.get("ready") or one.get("active") for one in jobs)
    return ("running", "") if ready else ("submitted", "")


class Follower:
    """Says what a job does: its state when it changes, and the lines of its first node as they come.

    Args:
        api: where it runs.
        name: of the job.
        poll_s: between two looks.
        write: takes a line of the log.
    """

    def __init__(
        self, api: Api, name: str, poll_s: float, write: Callable[[str], object] = lambda line: sys.stderr.write(line)
    ) -> None:
        self._api, self._name, self._poll_s, self._write = api, name, poll_s, write
        self._leader, self._last_time = "", ""
        self._asked_s = time.monotonic()
        self._lines: deque[str] = deque(maxlen=LAST_LINES)

    def follow(self) -> None:
        """Until the job has ended well.

        Raises:
            KinoflowError: it failed, or was deleted.
        """
        before = ""
        while True:
            job = self._api.job(self._name)
            if job is None or "deletionTimestamp" in job["metadata"]:
                raise KinoflowError(f"The TrainJob {self._name} was deleted while it ran; nobody trains any more.")
            state, message = state_of(job)
            if state != before:
                logger.info("TrainJob %s: %s%s", self._name, state, f" ({message})" if message else "")
                before = state
            self._pass_on_lines()
            if state == "complete":
                return
            if state == "failed":
                raise KinoflowError(self._failure(message))
            time.sleep(self._poll_s)

    def _pass_on_lines(self) -> None:
        """New lines of the first node's newest pod, told apart by their times."""
        leader = next(iter(self._api.pods(self._name)), None)
        if leader is None:
            return
        options: dict[str, Any] = {"timestamps": True}
        if leader.metadata.name == self._leader:
            options["since_seconds"] = int(time.monotonic() - self._asked_s) + 2
        else:
            self._leader, self._last_time = leader.metadata.name, ""
        asked_s = time.monotonic()
        for line in self._api.log(self._leader, **options).splitlines():
            moment, _, text = line.partition(" ")
            if moment > self._last_time:
                self._last_time = moment
                self._lines.append(text)
                self._write(f"[{self._leader}] {text}\n")
        self._asked_s = asked_s

    def _failure(self, message: str) -> str:
        """One sentence and the last lines of the pod that failed, which is not always the first."""
        lines, pod = list(self._lines), self._leader
        for one in self._api.pods(self._name):
            if one.metadata.name != self._leader and one.status.phase == "Failed":
                told = self._api.log(one.metadata.name, tail_lines=LAST_LINES).splitlines()
                for text in told:
                    self._write(f"[{one.metadata.name}] {text}\n")
                if any(text.startswith("error: ") for text in told) or not lines:
                    lines, pod = told, one.metadata.name
        said = next((text.removeprefix("error: ") for text in reversed(lines) if text.startswith("error: ")), "")
        last = said or " / ".join(lines[-3:]) or "its pods said nothing"
        return f"The TrainJob {self._name} failed ({message or 'no reason given'}); {pod or 'no pod'}: {last}"
