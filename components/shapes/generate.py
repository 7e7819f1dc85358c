"""Writes the made world to disk.

Layout: OUT/videos/ (media files with caption sidecars: all that a platform gets to read),
OUT/truth.json (what is in them, planted defects included) and OUT/prompts.txt (evaluation prompts).
"""

import json
import shutil
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from components.errors import KinoflowError
from components.shapes.plan import MediaFile, ShapesConfig, Shot, evaluation_prompts, plan_files
from components.shapes.world import render
from components.video import write_image, write_video

TRUTH_FORMAT = 1
CRF, RECODED_CRF = 16, 24
RECODED_SCALE = 0.75
TRUNCATED_SHARE = 0.6
TEXT_LINES = ("BREAKING", "NEWS TODAY", "SUBSCRIBE", "LIKE SHARE", "BEST OFFER")

Pixels = NDArray[np.uint8]


def generate(out: Path | str, config: ShapesConfig | None = None) -> dict[str, Any]:
    """Writes videos, images, captions, prompts and the truth below `out`.

    A former world in the same place is replaced; anything else there is left alone and refused.

    Returns:
        The content of truth.json.

    Raises:
        KinoflowError: when `out`/videos holds files that this function did not write.
    """
    out, config = Path(out), config or ShapesConfig()
    folder = out / "videos"
    _refuse_foreign_files(out)
    partial = out / "videos.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = plan_files(config)
    for file in files:
        _write_media(partial, file)
        _write_captions(partial, file)
    prompts = "".join(f"{prompt}\n" for prompt in evaluation_prompts(config))
    (out / "prompts.txt").write_text(prompts, encoding="utf-8")
    truth = {"format": TRUTH_FORMAT, "config": _config(config), "files": [_truth(file) for file in files]}
    shutil.rmtree(folder, ignore_errors=True)
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)
    return truth


def _config(config: ShapesConfig) -> dict[str, Any]:
    """A world without further copies is told as it was before there were any."""
    return config.model_dump(exclude=None if config.num_copies else {"num_copies"})


def draw_shot(shot: Shot, height: int, width: int) -> Pixels:
    """Draws one planned shot with its defect, (num_frames, height, width, 3) uint8."""
    if shot.scene is None:
        return np.zeros((shot.num_frames, height, width, 3), np.uint8)
    frames = render(shot.scene, shot.staging, shot.num_frames, height, width)
    return _overlay_text(frames) if shot.defect == "text" else frames


def _overlay_text(frames: Pixels) -> Pixels:
    """Writes lines of text across every frame, light on dark or dark on light."""
    height, width = frames.shape[1:3]
    ink = (0, 0, 0) if frames[0, 0, 0].mean() > 128 else (255, 255, 255)
    font = cv2.FONT_HERSHEY_SIMPLEX
    out = frames.copy()
    for number, line in enumerate(TEXT_LINES):
        (plain_width, _), _ = cv2.getTextSize(line, font, 1.0, 1)
        scale = min(0.9 * width / plain_width, 0.55)
        baseline = round(height * (number + 0.85) / len(TEXT_LINES))
        for frame in out:
            cv2.putText(frame, line, (round(0.05 * width), baseline), font, scale, ink, 1, cv2.LINE_AA)
    return out


def _write_media(folder: Path, file: MediaFile) -> None:
    path = folder / file.name
    if file.defect == "empty":
        path.write_bytes(b"")
    elif file.defect == "not_media":
        path.write_text("This is a note that somebody saved under the wrong name.\n", encoding="utf-8")
    elif file.defect == "duplicate":
        shutil.copyfile(folder / str(file.copy_of), path)
    else:
        _encode(path, file)
    if file.defect == "truncated":
        data = path.read_bytes()
        path.write_bytes(data[: round(TRUNCATED_SHARE * len(data))])
    elif file.defect == "no_index":
        path.write_bytes(_without_index(path.read_bytes()))


def _encode(path: Path, file: MediaFile) -> None:
    drawn = [draw_shot(shot, file.height, file.width) for shot in file.shots]
    frames = np.concatenate(
        [shot[begin:end] for shot, (begin, end) in zip(drawn, file.shot_frames(), strict=True)]
    )  # fmt: skip
    recoded = file.defect == "near_duplicate"
    scale, crf = (file.copying.scale, file.copying.crf) if file.copying else (RECODED_SCALE, RECODED_CRF)
    if recoded and scale != 1:
        size = (_even(file.width * scale), _even(file.height * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        frames = np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])
    if file.fps is None:
        write_image(path, frames[0], quality=70 if recoded else 95)
        return
    # Stored turned back, so that players turn it upright.
    stored = np.rot90(frames, file.rotation_deg // 90, axes=(1, 2))
    write_video(path, stored, file.fps, crf=crf if recoded else CRF, rotation_deg=file.rotation_deg)


def _even(length: float) -> int:
    return 2 * round(length / 2)


def _without_index(data: bytes) -> bytes:
    """An MP4 whose writing broke off before the index (moov) came: only the start of the data is left."""
    kept, position = b"", 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        box = data[position : position + size]
        if box[4:8] == b"ftyp":
            kept += box
        elif box[4:8] == b"mdat":
            kept += box[: round(TRUNCATED_SHARE * size)]
        position += max(size, 8)
    return kept


def _write_captions(folder: Path, file: MediaFile) -> None:
    """One caption goes into a .txt; several into a .json with each shot's time span."""
    path = folder / file.name
    if len(file.shots) == 1:
        path.with_suffix(".txt").write_text(f"{file.shots[0].caption}\n", encoding="utf-8")
    elif file.shots and file.fps is not None:
        spans = [
            {
                "start_s": round(start / file.fps, 4),
                "end_s": round(end / file.fps, 4),
                "caption": shot.caption,
            }
            for (start, end), shot in zip(_spans(file), file.shots, strict=True)
        ]
        path.with_suffix(".json").write_text(json.dumps({"shots": spans}, indent=1) + "\n", encoding="utf-8")


def _spans(file: MediaFile) -> list[tuple[int, int]]:
    """First frame and frame after the last of every shot."""
    return list(pairwise(accumulate((end - begin for begin, end in file.shot_frames()), initial=0)))


def _truth(file: MediaFile) -> dict[str, Any]:
    return {
        "path": f"videos/{file.name}",
        "media": file.media,
        "defect": file.defect,
        "copy_of": f"videos/{file.copy_of}" if file.copy_of else None,
        "height": file.height,
        "width": file.width,
        "fps": file.fps,
        "rotation_deg": file.rotation_deg,
        "num_frames": sum(end - begin for begin, end in file.shot_frames()),
        "shots": [
            {
                "start_frame": start,
                "end_frame": end,
                "caption": shot.caption,
                "scene": asdict(shot.scene) if shot.scene else None,
                "defect": shot.defect,
            }
            for (start, end), shot in zip(_spans(file), file.shots, strict=True)
        ],
    }


def _refuse_foreign_files(out: Path) -> None:
    """Lets a former world be replaced, but nothing that its truth does not list."""
    folder, truth_path = out / "videos", out / "truth.json"
    known: set[str] = set()
    if truth_path.is_file():
        listed = json.loads(truth_path.read_text(encoding="utf-8"))["files"]
        known = {Path(file["path"]).stem for file in listed}
    foreign = [path.name for path in folder.glob("*") if path.stem not in known]
    if foreign:
        raise KinoflowError(
            f"{folder} holds files that are not part of a generated world, such as {min(foreign)}; "
            "choose an empty folder"
        )
