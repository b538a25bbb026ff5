"""What a look becomes: a folder of images and of all that is said of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.arrays import Pixels
from assay.files import RunFolder, fingerprint, whole, whole_folder, write_json
from assay.messages import printable
from assay.predictions.inference import move, weights_hash
from assay.report.explain import Cam, Explained, ExplainOptions, Explanation, Maps, classes_of, explain
from assay.report.explain_run import ExplainTarget, Image, explain_target, read_images
from assay.report.explain_sheet import cam_lines, in_words, maps_line, png, sheet
from assay.run.contents import RunContents
from assay.training.devices import Hardware

NAME, SHEET = "explanation.json", "explanation.png"
LONGEST = 40  # letters of a folder's name that are the image's


def explanations_folder(run: Path) -> Path:
    """Where the looks of a run are, a folder each."""
    return RunFolder(run).explanations


def explain_images(
    run: RunContents,
    images: Sequence[str],
    *,
    wanted: ExplainOptions,
    member: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Look at images with the newest model of a run, finished or not, and write what is seen.

    `images` are files, or ids of the run. Gives what each explanation.json holds, and its folder.
    Raises RunError, ModelError or DataError as `looking`, `read_images` and `explain` do; nothing is written then.
    """
    chosen = explain_target(run, member)
    read = read_images(run, images, chosen)
    classes_of(chosen.network.space, wanted.classes)
    move(chosen.network.classifier, Hardware(device))
    found = []
    for image in read:
        seen = explain(chosen.network, image.pixels, known=image.known, wanted=wanted, device=device)
        told, layers = describe(chosen, image, seen)
        folder = (out or explanations_folder(run.folder)) / _folder_name(image.name)
        files = {name: png(pixels) for name, pixels in layers.items()}
        files[SHEET] = sheet(seen, name=told["image"], network=chosen.name)
        _write(folder, told | {"sheet": SHEET}, files)
        found.append({**told, "sheet": SHEET, "folder": str(folder)})
    return found


def describe(chosen: ExplainTarget, image: Image, seen: Explanation) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """All that is said of a look, as JSON holds it, and its images by the names it gives them."""
    many = len(seen.answers) > 1
    cams = {f"cam-{number}.png": cam for number, cam in enumerate(seen.cams, 1)}
    maps = {f"layer-{number}.png": one for number, one in enumerate(seen.maps, 1)}
    told = {
        "image": printable(image.name),
        "part": image.part,
        "network": chosen.name,
        "model": weights_hash(chosen.network.classifier),
        "answers": [_answer(answered, many=many) for answered in seen.answers],
        "grad-cam": [_cam(cam, file) for file, cam in cams.items()],
        "layers": [_maps(one, file) for file, one in maps.items()],
        "every layer": [{"name": name, "shape": list(shape)} for name, shape in seen.layers],
        "features": [float(f"{value:.4g}") for value in seen.features.tolist()],
        "file": "image.png",
    }
    images = {file: cam.overlay for file, cam in cams.items()} | {file: one.pixels for file, one in maps.items()}
    return told, images | {"image.png": seen.image}


def read_explanations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The looks of a run that are whole, each with its folder, the newest first."""
    files = sorted(explanations_folder(run).glob(f"[!.]*/{NAME}"), key=lambda path: (-path.stat().st_mtime, path))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in files]


def _write(folder: Path, told: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """The files of a look, in place of an earlier one at the same image."""
    with whole_folder(folder) as beside:
        for name, data in files.items():
            with whole(beside / name) as place:
                place.write_bytes(data)
        write_json(beside / NAME, told)


def _folder_name(name: str) -> str:
    """Letters and digits of an image's name, and a hash that tells it from others of the same."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", Path(printable(name)).with_suffix("").as_posix())
    return f"{words[-LONGEST:].strip('-') or 'image'}-{fingerprint(printable(name))[:6]}"


def _answer(answered: Explained, *, many: bool) -> dict[str, Any]:
    return {
        "head": answered.head.name,
        "kind": answered.head.kind,
        "likely": [{"class": name, "probability": round(probability, 6)} for name, probability in answered.likely],
        "given": answered.given,
        "label": answered.label,
        "line": in_words(answered, many=many),
    }


def _cam(cam: Cam, file: str) -> dict[str, Any]:
    place = cam.heat.hottest
    return {
        "head": cam.head,
        "class": cam.name,
        "said": list(cam.said),
        "probability": round(cam.probability, 6),
        "layer": cam.heat.layer,
        "map": list(cam.heat.side),
        "hottest": None if place is None else [round(share, 4) for share in place],
        "lines": cam_lines(cam),
        "file": file,
    }


def _maps(maps: Maps, file: str) -> dict[str, Any]:
    return {
        "name": maps.name,
        "shape": list(maps.shape),
        "channels": maps.shown,
        "line": maps_line(maps),
        "file": file,
    }
