"""A server of Kubeflow Pipelines' v2beta1 API on loopback: strict about what it is sent and what it answers.

Bodies are checked field by field against the models of `kfp-server-api`, uploads against Kubeflow's PipelineSpec, a
run's inputs against those the pipeline declares. A run moves on by one state with every question about it.
"""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.kfp_models import Refusal, check
from tests.kfp_progress import progress, tasks_of

PREFIX = "/apis/v2beta1"
LISTING = {"page_token", "page_size", "sort_by", "filter"}


@dataclass
class Behaviour:
    """How the server treats its guests; a test may change any of it at any time."""

    token: str = ""
    namespace: str = ""  # serves several when set, and lets its guest into this one
    fail_task: str = ""
    cancel: bool = False
    delay_s: float = 0.0
    refuse: Refusal | None = None  # answer to every request
    refuse_uploads: str = ""
    forget_answer_to: str = ""  # path suffix of a POST whose connection breaks after the work is done, once
    version_1_only: bool = False
    page_of_html: bool = False
    login_page: bool = False


@dataclass
class Held:
    """What the server keeps."""

    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)


class KfpServer:
    """Starts, stops (everything held stays) and starts again on the same port."""

    def __init__(self) -> None:
        self.behaviour, self.held = Behaviour(), Held()
        self.lock = threading.RLock()
        self.requests: list[tuple[str, str, int]] = []
        self.bodies: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Address of the API."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen."""
        handler = type("Bound", (_Handler,), {"kfp": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(BaseHTTPRequestHandler):
    kfp: KfpServer
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        behaviour = self.kfp.behaviour
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.kfp.bodies.append(body.decode(errors="replace"))
        time.sleep(behaviour.delay_s)
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        status, kind, answer = 200, "", None
        try:
            self._admit(parts.path)
            with self.kfp.lock:
                kind, answer = self._route(method, unquote(parts.path), query, body)
            check(kind, answer)
        except Refusal as refusal:
            status, answer = refusal.status, {"error": refusal.message, "code": 3, "message": refusal.message}
        self.kfp.requests.append((method, parts.path, status))
        if behaviour.forget_answer_to and method == "POST" and parts.path.endswith(behaviour.forget_answer_to):
            behaviour.forget_answer_to = ""
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, answer)

    def _admit(self, path: str) -> None:
        behaviour = self.kfp.behaviour
        if behaviour.refuse:
            raise behaviour.refuse
        if behaviour.version_1_only and path.startswith(PREFIX):
            raise Refusal(404, "Not Found")
        if behaviour.token and self.headers.get("Authorization") != f"Bearer {behaviour.token}":
            raise Refusal(401, "Unauthorized")

    def _answer(self, status: int, answer: Any) -> None:
        behaviour = self.kfp.behaviour
        content, content_type = json.dumps(answer).encode(), "application/json"
        if behaviour.page_of_html:
            content, content_type = b"<html>welcome</html>", "text/html"
        self.send_response(302 if behaviour.login_page else status)
        if behaviour.login_page:
            self.send_header("Location", "/dex/auth")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[str, Any]:
        for verb, pattern, allowed, act in ROUTES:
            match = re.fullmatch(PREFIX + pattern, path)
            if match and verb == method:
                if set(query) - allowed:
                    raise Refusal(400, f"unknown query {sorted(set(query) - allowed)}")
                content_type = self.headers.get("Content-Type", "")
                return act(Call(self.kfp, match.groups(), query, body, content_type))
        raise Refusal(404, f"Not Found: {method} {path}")


@dataclass
class Call:
    """One admitted request."""

    kfp: KfpServer
    ids: tuple[str, ...]
    query: dict[str, str]
    body: bytes
    content_type: str

    @property
    def held(self) -> Held:
        return self.kfp.held

    def model(self, kind: str) -> dict[str, Any]:
        """The body, which is one of the API's models."""
        if "json" not in self.content_type:
            raise Refusal(400, f"content type {self.content_type!r}")
        data: dict[str, Any] = json.loads(self.body)
        check(kind, data)
        return data

    def check_namespace(self, given: str | None) -> None:
        wanted = self.kfp.behaviour.namespace
        if wanted and not given:
            raise Refusal(400, "In multi-user mode, a namespace is required")
        if wanted and given != wanted:
            raise Refusal(403, f"User is not authorized in namespace {given}")
        if not wanted and given:
            raise Refusal(400, "In single-user mode, namespace must be empty")

    def listed(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that the filter names, in the order asked for."""
        if self.query.get("filter"):
            wanted = json.loads(self.query["filter"])
            check("V2beta1Filter", wanted)
            for predicate in wanted["predicates"]:
                if predicate["operation"] != "EQUALS":
                    raise Refusal(501, "only EQUALS")
                items = [item for item in items if item.get(predicate["key"]) == predicate["string_value"]]
        order = self.query.get("sort_by", "created_at").split()
        items = sorted(items, key=lambda item: item.get(order[0], ""), reverse=order[1:] == ["desc"])
        return items[: int(self.query.get("page_size") or 20)]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _health(call: Call) -> tuple[str, Any]:
    return "V2beta1GetHealthzResponse", {"multi_user": bool(call.kfp.behaviour.namespace)}


def _list_experiments(call: Call) -> tuple[str, Any]:
    call.check_namespace(call.query.get("namespace"))
    found = call.listed(list(call.held.experiments.values()))
    return "V2beta1ListExperimentsResponse", {"experiments": found, "total_size": len(found)} if found else {}


def _create_experiment(call: Call) -> tuple[str, Any]:
    wanted = call.model("V2beta1Experiment")
    call.check_namespace(wanted.get("namespace"))
    if any(one["display_name"] == wanted["display_name"] for one in call.held.experiments.values()):
        raise Refusal(409, f"Experiment {wanted['display_name']} already exists")
    made = {**wanted, "experiment_id": str(uuid.uuid4()), "created_at": _now()}
    call.held.experiments[made["experiment_id"]] = made
    return "V2beta1Experiment", made


def _list_pipelines(call: Call) -> tuple[str, Any]:
    call.check_namespace(call.query.get("namespace"))
    found = call.listed(list(call.held.pipelines.values()))
    return "V2beta1ListPipelinesResponse", {"pipelines": found} if found else {}


def _create_pipeline(call: Call) -> tuple[str, Any]:
    wanted = call.model("V2beta1Pipeline")
    call.check_namespace(wanted.get("namespace"))
    if any(one["display_name"] == wanted["display_name"] for one in call.held.pipelines.values()):
        raise Refusal(409, "Pipeline already exists")
    made = {**wanted, "pipeline_id": str(uuid.uuid4()), "created_at": _now()}
    call.held.pipelines[made["pipeline_id"]] = made
    return "V2beta1Pipeline", made


def _list_versions(call: Call) -> tuple[str, Any]:
    items = [one for one in call.held.versions.values() if one["pipeline_id"] == call.ids[0]]
    found = call.listed(items)
    return "V2beta1ListPipelineVersionsResponse", {"pipeline_versions": found} if found else {}


def _get_version(call: Call) -> tuple[str, Any]:
    version = call.held.versions.get(call.ids[1])
    if not version or version["pipeline_id"] != call.ids[0]:
        raise Refusal(404, f"PipelineVersion {call.ids[1]} not found")
    return "V2beta1PipelineVersion", version


def _upload_version(call: Call) -> tuple[str, Any]:
    if call.kfp.behaviour.refuse_uploads:
        raise Refusal(400, call.kfp.behaviour.refuse_uploads)
    if call.query.get("pipelineid") not in call.held.pipelines:
        raise Refusal(404, f"Pipeline {call.query.get('pipelineid')} not found")
    graph, platform = _uploaded(call)
    version_id = str(uuid.uuid4())
    if any(one["display_name"] == call.query["name"] for one in call.held.versions.values()):
        raise Refusal(409, "the version exists")
    call.held.versions[version_id] = {
        "pipeline_id": call.query["pipelineid"], "pipeline_version_id": version_id, "created_at": _now(),
        "display_name": call.query["name"], "pipeline_spec": {"pipeline_spec": graph, "platform_spec": platform},
    }  # fmt: skip
    return "V2beta1PipelineVersion", call.held.versions[version_id]


def _uploaded(call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two documents of a compiled pipeline in a form upload, checked as the real server does."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    if "multipart/form-data" not in call.content_type:
        raise Refusal(400, "an upload is a form")
    message = email.message_from_bytes(
        f"Content-Type: {call.content_type}\r\n\r\n".encode() + call.body, policy=email.policy.default
    )
    (file,) = list(message.iter_parts())  # type: ignore[attr-defined]
    name = file.get_filename()
    if file.get_param("name", header="content-disposition") != "uploadfile" or not name.endswith((".yaml", ".yml")):
        raise Refusal(400, f"the file {name!r} is no pipeline")
    graph, *platform = list(yaml.safe_load_all(file.get_payload(decode=True)))
    try:
        json_format.ParseDict(graph, pipeline_spec_pb2.PipelineSpec())
        for one in platform:
            json_format.ParseDict(one, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise Refusal(400, f"Failed to parse the pipeline spec: {error}") from error
    return graph, platform[0] if platform else {}


def _checked_inputs(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """The graph that a run or a recurring run names; its inputs must be those that the graph declares."""
    if wanted.get("experiment_id") not in call.held.experiments:
        raise Refusal(404, f"Experiment {wanted.get('experiment_id')} not found")
    reference = wanted.get("pipeline_version_reference") or {}
    version = call.held.versions.get(reference.get("pipeline_version_id", ""))
    if not version or version["pipeline_id"] != reference.get("pipeline_id"):
        raise Refusal(404, "PipelineVersion not found")
    graph: dict[str, Any] = version["pipeline_spec"]["pipeline_spec"]
    declared = graph["root"]["inputDefinitions"]["parameters"]
    given = wanted.get("runtime_config", {}).get("parameters", {})
    for name, value in given.items():
        if name not in declared or (declared[name]["parameterType"] == "STRING" and not isinstance(value, str)):
            raise Refusal(400, f"the input {name} = {value!r} is not one of the pipeline's")
    missing = {name for name, one in declared.items() if not one.get("isOptional")} - set(given)
    if missing:
        raise Refusal(400, f"missing inputs {sorted(missing)}")
    return graph


def _create_run(call: Call) -> tuple[str, Any]:
    wanted = call.model("V2beta1Run")
    _checked_inputs(call, wanted)
    made = {**wanted, "run_id": str(uuid.uuid4()), "created_at": _now(), "state": "PENDING"}
    call.held.runs[made["run_id"]] = made
    return "V2beta1Run", made


def _list_runs(call: Call) -> tuple[str, Any]:
    runs = [one for one in call.held.runs.values() if one["experiment_id"] == call.query.get("experiment_id")]
    found = call.listed(runs)
    return "V2beta1ListRunsResponse", {"runs": found} if found else {}


def _get_run(call: Call) -> tuple[str, Any]:
    run = call.held.runs.get(call.ids[0])
    if run is None:
        raise Refusal(404, f"Run {call.ids[0]} not found")
    asked = call.held.asked[call.ids[0]] = call.held.asked.get(call.ids[0], -1) + 1
    version = call.held.versions[run["pipeline_version_reference"]["pipeline_version_id"]]
    keys = tasks_of(version["pipeline_spec"]["pipeline_spec"])
    state, details = progress(asked, keys, call.kfp.behaviour.fail_task, cancel=call.kfp.behaviour.cancel)
    answer = {**run, "state": state, "run_details": {"task_details": details}}
    if state == "FAILED":
        answer["error"] = {"code": 13, "message": f"task {call.kfp.behaviour.fail_task} failed"}
    return "V2beta1Run", answer


def _create_recurring(call: Call) -> tuple[str, Any]:
    wanted = call.model("V2beta1RecurringRun")
    _checked_inputs(call, wanted)
    cron = wanted.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
    if not cron.startswith("@") and len(cron.split()) != 6:
        raise Refusal(400, f"Schedule cron is invalid: {cron}")
    if not 1 <= int(wanted.get("max_concurrency", "0")) <= 10:
        raise Refusal(400, "The max concurrency of the recurring run must be at least 1 and at most 10")
    made = {**wanted, "recurring_run_id": str(uuid.uuid4()), "created_at": _now(), "status": "ENABLED"}
    call.held.recurring[made["recurring_run_id"]] = made
    return "V2beta1RecurringRun", made


def _list_recurring(call: Call) -> tuple[str, Any]:
    items = [one for one in call.held.recurring.values() if one["experiment_id"] == call.query.get("experiment_id")]
    found = call.listed(items)
    return "V2beta1ListRecurringRunsResponse", {"recurringRuns": found} if found else {}


_Act = Callable[[Call], tuple[str, Any]]
ROUTES: list[tuple[str, str, set[str], _Act]] = [
    ("GET", "/healthz", set(), _health),
    ("GET", "/experiments", LISTING | {"namespace"}, _list_experiments),
    ("POST", "/experiments", set(), _create_experiment),
    ("GET", "/pipelines", LISTING | {"namespace"}, _list_pipelines),
    ("POST", "/pipelines", set(), _create_pipeline),
    ("GET", "/pipelines/([^/]+)/versions", LISTING, _list_versions),
    ("GET", "/pipelines/([^/]+)/versions/([^/]+)", set(), _get_version),
    ("POST", "/pipelines/upload_version", {"name", "pipelineid", "description", "display_name"}, _upload_version),
    ("GET", "/runs", LISTING | {"namespace", "experiment_id"}, _list_runs),
    ("POST", "/runs", {"experiment_id"}, _create_run),
    ("GET", "/runs/([^/]+)", {"experiment_id"}, _get_run),
    ("GET", "/recurringruns", LISTING | {"namespace", "experiment_id"}, _list_recurring),
    ("POST", "/recurringruns", set(), _create_recurring),
]
