"""The commands `kinoflow weights`: bring weights in, take them out, in the released form."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command(name="import")
def import_(
    source: Annotated[str, typer.Argument(help="Folder or .safetensors file: ST-DiT-2, or a PixArt-alpha network.")],
    out: Annotated[str, typer.Argument(help="URI prefix to publish at.")],
    model_max_length: Annotated[int, typer.Option(help="Text tokens, for an image network.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of what an image network lacks: temporal attention and more.")] = 0,
) -> None:
    """Check weights from elsewhere and publish them, for `start_from` of a preset.

    Example: `kinoflow weights import ~/OpenSora-STDiT-v2-stage3 work/weights/stage3`
    """
    from components.weights import import_weights

    published = import_weights(source, out, model_max_length=model_max_length, seed=seed)
    facts = published.facts
    typer.echo(f"{out}: {facts['tensors']} tensors, {facts['parameters']} values, found as {facts['layout']}")
    typer.echo(f"train from them with `--set start_from={out}`")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="URI of a checkpoint or of imported weights.")],
    out: Annotated[str, typer.Argument(help="Folder or URI prefix for config.json and model.safetensors.")],
    ema: Annotated[bool, typer.Option("--ema", help="The moving average instead of the trained weights.")] = False,
) -> None:
    """Write a checkpoint's network as a folder of the released form.

    Example: `kinoflow weights export work/stage3/step-00002800 exported --ema`
    """
    from components.weights import export_weights

    for uri in export_weights(checkpoint, out, use_ema=ema):
        typer.echo(uri)
