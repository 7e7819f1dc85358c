"""Kubeflow Pipelines over its v2beta1 API: requests that wait for a server that is away, failures as one sentence.

The generated client `kfp_server_api` is used directly: unlike `kfp.Client` it takes a time limit for every request,
prints nothing, and reads no credentials from the user's home.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from components.errors import KinoflowError

logger = logging.getLogger(__name__)

T = TypeVar("T")
CONNECT_S, READ_S = 5.0, 60.0
FIRST_PATIENCE_S, MAX_PAUSE_S = 10.0, 15.0
PASSING_STATUS = (429, 502, 503, 504)
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MAX_REASON_CHARS = 400
DESCRIPTORS = re.compile(r"@(hourly|daily|midnight|weekly|monthly|yearly|annually|every \S+)")
CRON_FIELD = re.compile(r"[\dA-Za-z*?/,-]+")


class KubeflowError(KinoflowError):
    """Kubeflow Pipelines refused, or cannot be asked."""


class KubeflowAway(KubeflowError):  # noqa: N818  # the state of the server, not a fault of it
    """The server does not answer; it may later."""


class KubeflowSettings(BaseSettings):
    """Where Kubeflow Pipelines is and how to be let in, under the names that `kfp` uses."""

    model_config = SettingsConfigDict(env_prefix="KF_PIPELINES_", extra="ignore", populate_by_name=True)

    endpoint: str = ""
    ui_endpoint: str = ""
    namespace: str = ""
    token: SecretStr = SecretStr("")
    token_file: Path | None = Field(
        None, validation_alias=AliasChoices("KF_PIPELINES_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH")
    )
    ca_file: Path | None = None

    def host(self) -> str:
        """Address of the API without a slash at its end.

        Raises:
            KubeflowError: none is given, or it is no address.
        """
        if not self.endpoint:
            raise KubeflowError(
                "No Kubeflow Pipelines is named; give --host or set KF_PIPELINES_ENDPOINT "
                "(through `kubectl port-forward` that is http://127.0.0.1:PORT)."
            )
        given = self.endpoint if "://" in self.endpoint else f"https://{self.endpoint}"
        try:
            parts = urlsplit(given)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise KubeflowError(f"{public(given)!r} is no address of Kubeflow Pipelines; write https://host[:port].")
        return given.rstrip("/")

    def ui(self) -> str:
        """Address of the web pages, without credentials."""
        return public(self.ui_endpoint.rstrip("/") or self.host())

    def read_token(self) -> str:
        """The token as it is now: a file may hold a new one by the next request."""
        path = self.token_file or (POD_TOKEN if not self.token.get_secret_value() and POD_TOKEN.is_file() else None)
        if path is None:
            return self.token.get_secret_value().strip()
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise KubeflowError(f"Could not read the token from {path}: {error.strerror}.") from error


def public(address: str) -> str:
    """An address without the user and password it may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


class Kubeflow:
    """One server of Kubeflow Pipelines.

    Args:
        settings: address, token and namespace.
        patience_s: how long a server that has answered before is waited for.

    Raises:
        KubeflowError: no usable address.
    """

    def __init__(self, settings: KubeflowSettings, patience_s: float = 300.0) -> None:
        import kfp_server_api

        self.settings, self.patience_s = settings, patience_s
        self.namespace: str | None = None
        self._known = False
        configuration = kfp_server_api.Configuration()
        configuration.host = settings.host()
        configuration.retries = False  # no redirect to a login page is followed, and waiting is done here
        if settings.ca_file:
            configuration.ssl_ca_cert = str(settings.ca_file)
        if settings.read_token():
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.api_key["authorization"] = ""
            configuration.refresh_api_key_hook = self._refresh
        self._client = kfp_server_api.ApiClient(configuration)

    def _refresh(self, configuration: Any) -> None:
        configuration.api_key["authorization"] = self.settings.read_token()

    @property
    def host(self) -> str:
        """Address of the API, without credentials."""
        return public(self.settings.host())

    def connect(self) -> None:
        """Find out that this is Kubeflow Pipelines 2, that the token is good, and which namespace applies.

        Raises:
            KubeflowError: it is not, or a namespace is missing.
        """
        from kfp_server_api import ExperimentServiceApi, HealthzServiceApi

        try:
            health = self.ask("reach", HealthzServiceApi(self._client).healthz_service_get_healthz)
        except KubeflowError as error:
            if getattr(error.__cause__, "status", None) != 404:
                raise
            raise KubeflowError(
                f"{self.host} has no v2beta1 API; Kinoflow needs Kubeflow Pipelines 2, and its API's own address."
            ) from error
        if health.multi_user:
            self.namespace = self.settings.namespace or _pod_namespace()
            if not self.namespace:
                raise KubeflowError(
                    f"{self.host} serves several namespaces; name yours with --namespace or KF_PIPELINES_NAMESPACE."
                )
        elif self.settings.namespace:
            logger.info("%s serves a single user; the namespace is not sent.", self.host)
        experiments = ExperimentServiceApi(self._client)
        self.ask("list experiments of", experiments.experiment_service_list_experiments, page_size=1, **self._scope())

    def _scope(self) -> dict[str, Any]:
        return {"namespace": self.namespace} if self.namespace else {}

    def experiment(self, name: str) -> str:
        """Id of the experiment of that name, which is made when there is none."""
        from kfp_server_api import ExperimentServiceApi, V2beta1Experiment

        api = ExperimentServiceApi(self._client)

        def find(**limits: Any) -> Any:
            found = api.experiment_service_list_experiments(filter=_named(name), **self._scope(), **limits)
            return next(iter(found.experiments or []), None)

        wanted = V2beta1Experiment(display_name=name, **self._scope())
        made = self._made(
            "make an experiment in", find, lambda **limits: api.experiment_service_create_experiment(wanted, **limits)
        )
        return str(made.experiment_id)

    def pipeline(self, name: str, description: str) -> str:
        """Id of the pipeline of that name, which is made, without a version, when there is none."""
        from kfp_server_api import PipelineServiceApi, V2beta1Pipeline

        api = PipelineServiceApi(self._client)

        def find(**limits: Any) -> Any:
            found = api.pipeline_service_list_pipelines(filter=_named(name), **self._scope(), **limits)
            return next(iter(found.pipelines or []), None)

        wanted = V2beta1Pipeline(display_name=name, name=name, description=description, **self._scope())
        made = self._made(
            "register a pipeline in", find, lambda **limits: api.pipeline_service_create_pipeline(wanted, **limits)
        )
        return str(made.pipeline_id)

    def version(self, pipeline_id: str, name: str, path: Path) -> tuple[str, bool]:
        """Id of the pipeline's version of that name, and whether it had to be uploaded from `path`."""
        from kfp_server_api import PipelineServiceApi, PipelineUploadServiceApi

        api, uploads = PipelineServiceApi(self._client), PipelineUploadServiceApi(self._client)
        uploaded = False

        def find(**limits: Any) -> Any:
            found = api.pipeline_service_list_pipeline_versions(pipeline_id, filter=_named(name), **limits)
            return next(iter(found.pipeline_versions or []), None)

        def upload(**limits: Any) -> Any:
            nonlocal uploaded
            uploaded = True
            return uploads.upload_pipeline_version(str(path), name=name, pipelineid=pipeline_id, **limits)

        made = self._made("upload the pipeline to", find, upload)
        return str(made.pipeline_version_id), uploaded

    def start(self, run: Any) -> Any:
        """Start a run once, even when the answer to the first attempt was lost: its description tells it apart."""
        from kfp_server_api import RunServiceApi

        api = RunServiceApi(self._client)

        def find(**limits: Any) -> Any:
            listed = api.run_service_list_runs(
                experiment_id=run.experiment_id, sort_by="created_at desc", page_size=50, **limits
            )
            return next((one for one in listed.runs or [] if one.description == run.description), None)

        return self._made("start the run in", find, lambda **limits: api.run_service_create_run(run, **limits))

    def schedule(self, recurring: Any) -> Any:
        """Make a recurring run once; see `start`."""
        from kfp_server_api import RecurringRunServiceApi

        api = RecurringRunServiceApi(self._client)

        def find(**limits: Any) -> Any:
            listed = api.recurring_run_service_list_recurring_runs(
                experiment_id=recurring.experiment_id, sort_by="created_at desc", page_size=50, **limits
            )
            found = listed.recurring_runs or []
            return next((one for one in found if one.description == recurring.description), None)

        def create(**limits: Any) -> Any:
            return api.recurring_run_service_create_recurring_run(recurring, **limits)

        return self._made("schedule the run in", find, create)

    def run(self, run_id: str) -> Any:
        """A run as it is now; a server in trouble is waited for like one that is away."""
        from kfp_server_api import RunServiceApi

        call = RunServiceApi(self._client).run_service_get_run
        return self.ask("ask for the run in", call, run_id, passing=(*PASSING_STATUS, 500))

    def graph(self, pipeline_id: str, version_id: str) -> dict[str, Any]:
        """The compiled graph of a version: Kubeflow's PipelineSpec."""
        from kfp_server_api import PipelineServiceApi

        call = PipelineServiceApi(self._client).pipeline_service_get_pipeline_version
        spec = self.ask("read the pipeline in", call, pipeline_id, version_id).pipeline_spec or {}
        found: dict[str, Any] = spec.get("pipeline_spec", spec)
        return found

    def _made(self, action: str, find: Callable[..., Any], create: Callable[..., Any]) -> Any:
        """What `find` finds, or else what `create` makes; looked for again after every outage."""
        from kfp_server_api import ApiException

        def make(**limits: Any) -> Any:
            found = find(**limits)
            if found is not None:
                return found
            try:
                return create(**limits)
            except ApiException as error:
                found = find(**limits) if error.status == 409 else None  # another was quicker
                if found is None:
                    raise
                return found

        return self.ask(action, make)

    def ask(
        self,
        action: str,
        call: Callable[..., T],
        *arguments: Any,
        passing: tuple[int, ...] = PASSING_STATUS,
        **options: Any,
    ) -> T:
        """Make one request and wait for a server that is away.

        Raises:
            KubeflowAway: it stayed away.
            KubeflowError: it refused.
        """
        patience_s = self.patience_s if self._known else min(FIRST_PATIENCE_S, self.patience_s)
        retrying = Retrying(
            retry=retry_if_exception_type(KubeflowAway), stop=stop_before_delay(patience_s), reraise=True,
            wait=wait_random_exponential(multiplier=0.5, max=MAX_PAUSE_S), before_sleep=self._say(patience_s),
        )  # fmt: skip
        answer = retrying(lambda: self._once(action, passing, lambda: call(*arguments, **options, **_limits())))
        if retrying.statistics.get("attempt_number", 1) > 1:
            logger.warning("%s answers again.", self.host)
        self._known = True
        return answer

    def _once(self, action: str, passing: tuple[int, ...], call: Callable[[], T]) -> T:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = call()
            if not str(self._client.last_response.data).lstrip().startswith("{"):
                raise ValueError("a page instead of an answer")
            return answer
        except ApiException as error:
            raise self._refused(action, error, passing) from error
        except (HTTPError, OSError) as error:
            raise KubeflowAway(
                f"Could not {action} {self.host}: it does not answer ({type(error).__name__}); "
                "check the address, and that a port-forward still runs."
            ) from error
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            # the generated client stumbles over TLS failures and over answers that are not the API's
            hidden = error.__context__
            if isinstance(hidden, ApiException) and not hidden.status:
                raise KubeflowError(
                    f"Could not {action} {self.host}: no trusted connection ({hidden.reason.splitlines()[-1]}); "
                    "name the authority's certificate with --ca-file."
                ) from error
            raise KubeflowError(
                f"Could not {action} {self.host}: its answer is not one of Kubeflow Pipelines' v2beta1 API; "
                "check the address, and that the server is Kubeflow Pipelines 2."
            ) from error

    def _refused(self, action: str, error: Any, passing: tuple[int, ...]) -> KubeflowError:
        what, status = f"Could not {action} {self.host}", int(error.status)
        if status in passing:
            return KubeflowAway(f"{what}: it answers {status}.")
        if status == 401 or 300 <= status < 400:
            given = "the token is refused or has expired" if self.settings.read_token() else "it wants a token"
            return KubeflowError(f"{what}: {given} ({status}); set KF_PIPELINES_TOKEN or name a --token-file.")
        reason = _reason(error)
        if status == 403:
            where = f" in the namespace {self.namespace}" if self.namespace else ""
            return KubeflowError(
                f"{what}: this token may not do that{where} (403{f': {reason}' if reason else ''}); "
                "check --namespace, and the roles bound to the account."
            )
        return KubeflowError(f"{what}: it answered {status}{f': {reason}' if reason else ''}.")

    def _say(self, patience_s: float) -> Callable[[RetryCallState], None]:
        def say(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if state.attempt_number == 1:
                logger.warning("%s Trying again for %.0f s.", error, patience_s)

        return say


def _limits() -> dict[str, Any]:
    return {"_request_timeout": (CONNECT_S, READ_S)}


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def _reason(error: Any) -> str:
    """What the server itself says, on one line."""
    try:
        said = json.loads(error.body or "")
        text = said.get("message") or said.get("error_message") or said.get("error") or ""
    except (ValueError, AttributeError):
        text = error.body or error.reason or ""
    return " ".join(str(text).split())[:MAX_REASON_CHARS].rstrip(".")


def _pod_namespace() -> str:
    return POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else ""


def kubeflow_cron(text: str) -> str:
    """A cron expression with the leading seconds that Kubeflow wants; five fields get a 0.

    Raises:
        KubeflowError: it is none.
    """
    fields = text.split()
    if DESCRIPTORS.fullmatch(text.strip()):
        return text.strip()
    if len(fields) not in (5, 6) or not all(CRON_FIELD.fullmatch(field) for field in fields):
        raise KubeflowError(
            f"--recurring {text!r} is no cron expression; write five fields, for example '0 3 * * 1', or six with "
            "seconds first."
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])
