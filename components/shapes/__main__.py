"""`python -m components.shapes OUT`: writes the made world."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from components.errors import KinoflowError
from components.shapes.generate import generate
from components.shapes.plan import ShapesConfig

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Folder that gets videos/, truth.json and prompts.txt.")],
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 0,
    videos: Annotated[int, typer.Option(min=1, help="Video files.")] = 110,
    images: Annotated[int, typer.Option(min=0, help="Image files.")] = 80,
    copies: Annotated[int, typer.Option(min=0, help="Further near-duplicates: encoded anew, rescaled, trimmed.")] = 0,
) -> None:
    """Writes a world of moving shapes with captions, planted defects and the truth about them."""
    try:
        truth = generate(out, ShapesConfig(seed=seed, num_videos=videos, num_images=images, num_copies=copies))
    except KinoflowError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    shots = [shot for file in truth["files"] if file["defect"] is None for shot in file["shots"]]
    sound = sum(shot["defect"] is None for shot in shots)
    defects = Counter(file["defect"] for file in truth["files"] if file["defect"])
    defects.update(shot["defect"] for shot in shots if shot["defect"])
    planted = ", ".join(f"{count} {name}" for name, count in sorted(defects.items()))
    typer.echo(f"{len(truth['files'])} files with {sound} sound shots in {out}; planted: {planted}")


if __name__ == "__main__":
    app()
