"""The commands `kinoflow submit`, `kinoflow follow` and `kinoflow doctor`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components.cli import EXIT_FAILED, LOG_FORMAT
from components.errors import KinoflowError
from pipelines.changes import changes
from pipelines.config import load_run_config, preset_names
from pipelines.terminal import make_console

HostOption = Annotated[str, typer.Option(help="Address of Kubeflow Pipelines; KF_PIPELINES_ENDPOINT.")]
UiOption = Annotated[str, typer.Option(help="Address of its web pages, for links; KF_PIPELINES_UI_ENDPOINT.")]
NamespaceOption = Annotated[str, typer.Option(help="Where several are served; KF_PIPELINES_NAMESPACE.")]
TokenFileOption = Annotated[Path | None, typer.Option(help="File with the token, else KF_PIPELINES_TOKEN.")]
CaFileOption = Annotated[Path | None, typer.Option(help="Certificate of the authority that signed the server's.")]
PatienceOption = Annotated[float, typer.Option(help="Seconds a server that is away is waited for.", min=0)]
PollOption = Annotated[float, typer.Option(help="Seconds between two looks at the run.", min=0.05)]


def submit(
    preset: Annotated[str, typer.Option("--preset", "-p", help=f"{', '.join(preset_names())}, or a YAML file.")],
    videos: Annotated[str, typer.Option(help="s3:// prefix, or s3:// URI of a .csv or .parquet table.")] = "",
    name: Annotated[str | None, typer.Option(help="Name of the run; the preset's name when absent.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the preset: key=value.")] = None,
    image: Annotated[str, typer.Option(help="Image of all tasks, by digest; KINOFLOW_IMAGE.")] = "",
    data_image: Annotated[str, typer.Option(help="Of tasks without a network; KINOFLOW_DATA_IMAGE.")] = "",
    start_at: Annotated[str, typer.Option(help="First part that works: ingest, curate, bucket, a stage, …")] = "",
    stop_after: Annotated[str, typer.Option(help="Last part that works.")] = "",
    from_run: Annotated[str, typer.Option(help="URI of the run whose results --start-at goes on from.")] = "",
    base: Annotated[str, typer.Option(help="URI below which runs, objects and latents lie.")] = "s3://kinoflow",
    root: Annotated[str, typer.Option(help="URI of this run; <base>/runs/<name> when absent.")] = "",
    objects: Annotated[str, typer.Option(help="URI of the files; <base>/objects when absent.")] = "",
    latents: Annotated[str, typer.Option(help="URI of the latents; <base>/latents when absent.")] = "",
    experiment: Annotated[str, typer.Option(help="Of Kubeflow and of MLflow.")] = "kinoflow",
    source_version: Annotated[str, typer.Option(help="Version of the videos, recorded with the run.")] = "",
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline in Kubeflow.")] = "kinoflow",
    service_account: Annotated[str, typer.Option(help="Of the pods; the server's own when absent.")] = "",
    cluster: Annotated[Path | None, typer.Option(help="YAML: nodes, GPUs, volumes, retries of every task.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each task that computes.", min=0)] = None,
    register_only: Annotated[bool, typer.Option("--register-only", help="Upload the version, start nothing.")] = False,
    recurring: Annotated[str | None, typer.Option(help="Start it by cron, e.g. '0 3 * * 1'.")] = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Start it and leave.")] = False,
    host: HostOption = "",
    ui_host: UiOption = "",
    namespace: NamespaceOption = "",
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    patience: PatienceOption = 300.0,
    poll: PollOption = 5.0,
) -> None:
    """Register the graph in Kubeflow Pipelines, start a run there, and follow it.

    Ends with 0 when the run succeeded, 1 when it failed, 3 when it was cancelled, 75 when the server went away and the
    outcome is not known. Ctrl-C ends the following, never the run.

    Examples:

    - `kinoflow submit -p opensora-v1.1 --videos s3://videos/raw --image registry/kinoflow-python@sha256:…`
    - `kinoflow submit -p demo --videos s3://v --from-run s3://kinoflow/runs/a --start-at stage2 --image …`
    - `kinoflow submit -p demo --register-only --image registry/kinoflow-python@sha256:…`
    """
    from pipelines.cluster import choose_cluster
    from pipelines.kubeflow import kubeflow_cron
    from pipelines.submit import Submission, follow_to_the_end, register, schedule, start

    image = image or os.environ.get("KINOFLOW_IMAGE", "")
    if not image:
        raise KinoflowError("No image is named; give --image registry/name@sha256:… or set KINOFLOW_IMAGE.")
    if recurring:
        kubeflow_cron(recurring)
    config = load_run_config(preset, changes(set_))
    submission = Submission(
        config, image, choose_cluster(cluster, config.cluster, {"gpus": gpus}), videos,
        name or Path(config.preset).stem, base.rstrip("/"), root.rstrip("/"), objects.rstrip("/"), latents.rstrip("/"),
        experiment, source_version, pipeline, service_account, recurring is not None,
        data_image or os.environ.get("KINOFLOW_DATA_IMAGE", ""), start_at, stop_after, from_run.rstrip("/"),
    )  # fmt: skip
    if not register_only:
        submission.check()
    kubeflow = _connected(patience, host, ui_host, namespace, token_file, ca_file)
    console = make_console()
    registered = register(kubeflow, submission, console)
    if register_only:
        return
    if recurring:
        schedule(kubeflow, submission, registered, recurring, console)
        return
    run_id = start(kubeflow, submission, registered, console)
    if not no_follow:
        raise typer.Exit(follow_to_the_end(kubeflow, run_id, registered.graph, console, poll))


def follow(
    run_id: Annotated[str, typer.Argument(help="What `kinoflow submit` printed.")],
    host: HostOption = "",
    ui_host: UiOption = "",
    namespace: NamespaceOption = "",
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    patience: PatienceOption = 300.0,
    poll: PollOption = 5.0,
) -> None:
    """Follow a run of Kubeflow Pipelines to its end; the exit code is that of `kinoflow submit`.

    Example: `kinoflow follow 1f0c5b3e-…`
    """
    from pipelines.submit import follow_to_the_end, graph_of, links

    kubeflow = _connected(patience, host, ui_host, namespace, token_file, ca_file)
    run = kubeflow.run(run_id)
    told: dict[str, Any] = (run.runtime_config.parameters if run.runtime_config else None) or {}
    console = make_console()
    links(kubeflow, run_id, str(told.get("experiment", "")), str(told.get("run_name", "")), console)
    raise typer.Exit(follow_to_the_end(kubeflow, run_id, graph_of(kubeflow, run), console, poll))


def doctor(
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="Its section `cluster` is checked.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML: nodes, GPUs, volumes of every task.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each task that computes.", min=0)] = None,
    store: Annotated[str | None, typer.Option(help="Try this store out, s3://bucket/prefix, and nothing else.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="KUBECONFIG or ~/.kube/config when absent.")] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig; its current one when absent.")] = None,
    host: HostOption = "",
    namespace: NamespaceOption = "",
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Check a cluster or a store before anything is queued; 1 when something is wrong.

    What could not be looked at is said to be "not checked", with the reason.

    Examples:

    - `kinoflow doctor --preset mine.yaml --namespace team-a`
    - `kinoflow doctor --store s3://kinoflow/trial`
    """
    from pipelines.cluster import choose_cluster
    from pipelines.doctor import check_cluster, check_kubeflow, check_tracking, print_findings, print_settings

    console = make_console()
    if store is not None:
        from components.store.check import check_store

        os.environ.setdefault("KINOFLOW_STORE_PATIENCE_S", "10")
        findings, settings = check_store(store)
        failed = print_findings(findings, console)
        print_settings(settings, typer.echo)
        raise typer.Exit(EXIT_FAILED if failed else 0)
    section = load_run_config(preset).cluster if preset else None
    chosen = choose_cluster(cluster, section, {"gpus": gpus})
    settings_ = _settings(endpoint=host, namespace=namespace, token_file=token_file, ca_file=ca_file)
    findings = [
        *check_cluster(chosen, kubeconfig, context, settings_.namespace),
        check_kubeflow(settings_),
        check_tracking(os.environ.get("MLFLOW_TRACKING_URI", "")),
    ]
    raise typer.Exit(EXIT_FAILED if print_findings(findings, console) else 0)


def _connected(
    patience_s: float, host: str, ui_host: str, namespace: str, token_file: Path | None, ca_file: Path | None
) -> Any:
    """The server that options and environment name, found to be there."""
    from pipelines.kubeflow import Kubeflow

    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    settings = _settings(
        endpoint=host, ui_endpoint=ui_host, namespace=namespace, token_file=token_file, ca_file=ca_file
    )  # fmt: skip
    kubeflow = Kubeflow(settings, patience_s)
    kubeflow.connect()
    return kubeflow


def _settings(**given: Any) -> Any:
    """What options say, and the environment where they say nothing."""
    from pipelines.kubeflow import KubeflowSettings

    return KubeflowSettings(**{key: value for key, value in given.items() if value})


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (submit, follow, doctor):
        app.command()(command)
