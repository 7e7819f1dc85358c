"""The command `kinoflow`. Each command checks its input first and ends a mistake with one sentence and exit code 1."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from components.cli import EXIT_FAILED, EXIT_INTERRUPTED, user_sentence
from components.errors import KinoflowError
from pipelines.changes import changes as _changes
from pipelines.cluster_commands import add_commands as add_cluster_commands
from pipelines.compare_command import compare
from pipelines.config import RunConfig, load_run_config, preset_names
from pipelines.generate_command import generate
from pipelines.images_command import images
from pipelines.models_commands import add_commands as add_model_commands
from pipelines.packing import digest, pack
from pipelines.provenance import lineage, takedown, takedowns
from pipelines.studio_command import studio
from pipelines.terminal import BUCKET, make_console
from pipelines.vbench_command import app as vbench_app
from pipelines.weights import app as weights_app
from pipelines.whatif import whatif

app = typer.Typer(
    help="Train text-to-video models the Open-Sora 1.1 way: on this machine, under DVC, or on Kubeflow.",
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

app.command()(takedown)
app.command()(takedowns)
app.command()(lineage)
app.command()(pack)
app.command()(compare)
app.command()(digest)
app.command()(images)
add_cluster_commands(app)
add_model_commands(app)
app.add_typer(weights_app, name="weights", help="Weights in and out, in Open-Sora 1.1's released form.")
app.add_typer(vbench_app, name="vbench", help="Videos for VBench and VBench-I2V, and their results back.")

app.command()(whatif)
app.command()(generate)
app.command()(studio)

PresetOption = Annotated[str, typer.Option("--preset", "-p", help=f"{', '.join(preset_names())}, or a YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value of the preset: key=value, e.g. stages.0.steps=50.")
]
S3PortOption = Annotated[int | None, typer.Option(help="Port of the embedded object store.", min=1, max=65535)]
MlflowPortOption = Annotated[int | None, typer.Option(help="Port of the embedded MLflow.", min=1, max=65535)]


@app.command()
def run(
    preset: PresetOption = "demo",
    videos: Annotated[
        str | None, typer.Option(help="Folder, s3:// prefix, table, list, .tar or address; the preset's if absent.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the preset's name when absent.")] = None,
    set_: SetOption = None,
    base: Annotated[str, typer.Option(help="URI below which runs and objects are stored.")] = BUCKET,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "kinoflow",
    s3_port: S3PortOption = None,
    mlflow_port: MlflowPortOption = None,
) -> None:
    """Run the whole graph here: ingest, curate, bucket, three training stages, evaluate.

    The same name again goes on where the run stopped, and skips what is done.

    Examples:

    - `kinoflow run`
    - `kinoflow run --videos ~/clips --name mine`
    - `kinoflow run --preset smoke --set stages.2.steps=20`
    """
    from pipelines.local.runner import RunRequest, run_folder
    from pipelines.local.runner import run as run_graph
    from pipelines.local.services import Ports, home_folder
    from pipelines.sources import resolve_source, source_version

    config = _load(preset, set_)
    if not config.trainable_here:
        raise KinoflowError(f"The preset {config.preset} is for a cluster; see `kinoflow plan {config.preset}`.")
    home = home_folder()
    name = name or config.preset
    run_folder(home, name)
    source = resolve_source(config, videos, home.parent)
    if videos is not None:  # only the made videos have a truth to compare with
        evaluation = config.evaluate.model_copy(update={"measure_shapes": False})
        config = config.model_copy(update={"evaluate": evaluation})
    request = RunRequest(config, source, name, base.rstrip("/"), experiment, source_version(source))
    try:
        run_graph(request, home, Ports(s3_port, mlflow_port), make_console())
    except (KeyboardInterrupt, SystemExit):
        typer.echo(f"interrupted; the same command goes on where the run {name!r} stopped.", err=True)
        raise


@app.command(name="compile")
def compile_(
    preset: PresetOption = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "build/text_to_video.yaml"
    ),
    image: Annotated[str | None, typer.Option(help="Image of all tasks; name it by digest.")] = None,
    data_image: Annotated[str | None, typer.Option(help="Image of the tasks that need no network.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML: nodes, GPUs, volumes, retries of every task.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each task that computes.")] = None,
    store_secret: Annotated[str | None, typer.Option(help="Kubernetes secret of the store.")] = None,
    addresses: Annotated[str | None, typer.Option(help="ConfigMap with the services' addresses.")] = None,
    set_: SetOption = None,
) -> None:
    """Write the graph as the YAML that Kubeflow Pipelines takes; needs neither a cluster nor torch.

    Example: `kinoflow compile --preset demo --image registry/kinoflow-python@sha256:… -o pipeline.yaml`
    """
    from pipelines.cluster import choose_cluster
    from pipelines.ops import IMAGE
    from pipelines.text_to_video import compile_pipeline

    config = _load(preset, set_)
    given = {"gpus": gpus, "store_secret": store_secret, "addresses": addresses}
    compile_pipeline(config, output, image or IMAGE, choose_cluster(cluster, config.cluster, given), data_image)
    typer.echo(f"wrote {output}")


@app.command()
def plan(
    preset: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    probe: Annotated[bool, typer.Option("--probe", help="Measure: some training steps on this machine.")] = False,
    gpu: Annotated[str | None, typer.Option(help="Plan for this GPU from its data sheet: h200, a100-80, …")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of one device; its own when absent.", min=0.1)] = None,
    gpus: Annotated[int, typer.Option(help="Ranks that train together.", min=1)] = 1,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="For the cost of the schedule.", min=0)] = None,
    step_seconds: Annotated[float | None, typer.Option(help="Step time wanted of every bucket.", min=1e-6)] = None,
    mfu: Annotated[float, typer.Option(help="Share of a GPU's peak assumed without --probe.", min=0.01, max=1)] = 0.35,
    caption_tokens: Annotated[int | None, typer.Option(help="Of a caption; the longest when absent.", min=1)] = None,
    clips: Annotated[int | None, typer.Option(help="Kept clips, for the storage of latents and text.", min=1)] = None,
    write: Annotated[Path | None, typer.Option(help="Write the preset with the planned batch sizes.")] = None,
    set_: SetOption = None,
) -> None:
    """Choose batch sizes that fill the memory and balance the buckets; show time, memory, cost and storage.

    Without --probe nothing is run. A planned file runs as `kinoflow run --preset FILE`.

    Examples:

    - `kinoflow plan opensora-v1.1 --gpu h200 --gpus 64 --price-per-gpu-hour 2.5`
    - `kinoflow plan demo --probe --write planned.yaml`
    """
    from pipelines.plan import PlanOptions, make_plan, write_planned
    from pipelines.plan_tables import print_plan

    options = PlanOptions(
        probe=probe, gpu=gpu, memory_gib=memory, gpus=gpus, price_per_gpu_hour=price_per_gpu_hour, mfu=mfu,
        step_s=step_seconds, caption_tokens=caption_tokens, clips=clips,
    )  # fmt: skip
    made = make_plan(_load(preset, set_), options, say=lambda text: typer.echo(text, err=True))
    print_plan(made, make_console())
    if write is not None:
        write_planned(made, preset, _changes(set_), write)
        typer.echo(f"wrote {write}; start it with `kinoflow run --preset {write}`")


@app.command()
def config(
    preset: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for one JSON file per component.")] = Path("work/config"),
    set_: SetOption = None,
) -> None:
    """Write what each component is told, as files for `python -m components.<stage> --config`.

    Example: `kinoflow config demo --out work/config`
    """
    from pipelines.dvc import write_configs

    for path in write_configs(_load(preset, set_), out):
        typer.echo(str(path))


@app.command()
def data(preset: PresetOption = "demo") -> None:
    """Make the preset's own source videos, unless they are there already.

    Example: `kinoflow data --preset demo`
    """
    from pipelines.local.services import home_folder
    from pipelines.sources import make_demo_data

    loaded = _load(preset, None)
    if loaded.demo_data is None:
        raise KinoflowError(f"The preset {loaded.preset} brings no videos of its own.")
    folder = home_folder().parent / loaded.demo_data.folder
    made = make_demo_data(loaded.demo_data, folder)
    typer.echo(f"{'wrote' if made else 'already there:'} {folder}")
    tracked = folder.parent / f"{folder.name}.dvc"
    if tracked.is_file():
        from pipelines.dvc import compare_with_version

        typer.echo(compare_with_version(tracked))


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="A published prefix, or the root of a run.")],
) -> None:
    """Check every byte of an output, or of all outputs of a run, against the manifests.

    Examples: `kinoflow verify work/bucket`, `kinoflow exec -- kinoflow verify s3://kinoflow/runs/demo`
    """
    from pipelines.upkeep import verify_below

    count, faults = verify_below(uri)
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(EXIT_FAILED)
    typer.echo(f"{count} outputs are whole")


@app.command()
def gc(
    root: Annotated[str, typer.Argument(help="URI below which outputs lie: all runs, one run, or one stage.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go and remove nothing.")] = False,
    keep_last: Annotated[int, typer.Option(min=1, help="Newest checkpoints kept of each stage.")] = 2,
    keep_every: Annotated[int | None, typer.Option(min=1, help="Keep the checkpoints of every so many steps.")] = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="Unfinished things younger than this stay.")] = 24.0,
) -> None:
    """Remove superseded checkpoints and what killed processes have left; ask nothing, say everything.

    A checkpoint stays when a later stage, a report or a registered model came from it, and so does the last whole one
    of each stage.

    Examples: `kinoflow gc work --dry-run`, `kinoflow exec -- kinoflow gc s3://kinoflow/runs --keep-last 1`
    """
    from components.collect import Retention
    from pipelines.upkeep import collect_garbage

    retention = Retention(keep_last=keep_last, keep_every=keep_every, grace_h=grace_hours)
    collect_garbage(root, retention, dry_run=dry_run, console=make_console())


@app.command()
def checkpoint(
    stage: Annotated[str, typer.Argument(help="URI prefix of a training stage.")],
) -> None:
    """Print the URI of a stage's final checkpoint.

    Example: `kinoflow checkpoint work/stage1`
    """
    from pipelines.dvc import final_checkpoint

    typer.echo(final_checkpoint(stage))


@app.command()
def ui(s3_port: S3PortOption = None, mlflow_port: MlflowPortOption = None) -> None:
    """Keep the embedded MLflow and object store running until Ctrl-C, and print their addresses.

    Example: `kinoflow ui --mlflow-port 5000`
    """
    from pipelines.local.services import Ports, home_folder, running_services, write_environment

    home = home_folder()
    typer.echo("starting MLflow, some twenty seconds …", err=True)
    with running_services(home, Ports(s3_port, mlflow_port), wait_for_tracking=True) as services:
        path = write_environment(home, services)
        typer.echo(f"MLflow        {services.tracking_uri}")
        typer.echo(f"object store  {services.endpoint}  (for other programs: `source {path}`)")
        typer.echo("Ctrl-C ends both.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(command: Annotated[list[str], typer.Argument(help="The command and its arguments.")]) -> None:
    """Run a command with the object store and MLflow up and their addresses in its environment.

    Examples: `kinoflow exec -- dvc push`, `kinoflow exec -- dvc repro`
    """
    from components import store
    from pipelines.local.services import Ports, home_folder, running_services

    with running_services(home_folder(), Ports()):
        store.ensure_bucket(BUCKET)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            code = subprocess.run(command, check=False, env={**os.environ, "PATH": programs}).returncode
        except OSError as error:
            raise KinoflowError(f"Could not run {command[0]!r}: {error.strerror}.") from error
    raise typer.Exit(code)


def _load(preset: str, changes: list[str] | None) -> RunConfig:
    return load_run_config(preset, _changes(changes))


def main() -> None:
    """Entry point: mistakes as one sentence, faults of the program with their traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        sentence = user_sentence(error)
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(EXIT_FAILED)


def _terminated(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
