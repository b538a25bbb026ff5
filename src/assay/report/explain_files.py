"""Explanations as folders of images and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.arrays import Pixels
from assay.files import RunFolder, fingerprint, whole, whole_folder, write_json
from assay.messages import printable
from assay.predictions.inference import move, weights_hash
from assay.report.explain import (
    Answer,
    Cam,
    ExplainOptions,
    ExplainTarget,
    Explanation,
    Image,
    LayerImage,
    explain,
    explain_target,
    find_classes,
    read_images,
)
from assay.report.explain_sheet import answer_line, cam_lines, layer_line, png, pooled_line, sheet
from assay.report.gradcam import series
from assay.run.contents import RunContents
from assay.training.devices import Hardware

NAME, SHEET = "explanation.json", "explanation.png"
LONGEST = 40  # letters of a folder's name that are the image's


def explain_images(
    run: RunContents,
    images: Sequence[str],
    *,
    options: ExplainOptions,
    member: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Explain images with the newest model of a run, finished or not, and write a folder for each.

    `images` are files, or ids of the run. Returns what each explanation.json holds, and its folder.
    Raises RunError, ModelError or DataError as `explain_target`, `read_images` and `explain` do; nothing is written
    then.
    """
    target = explain_target(run, member)
    read = read_images(run, images, target)
    find_classes(target.network.space, options.classes)
    move(target.network.classifier, Hardware(device))
    records = []
    for image in read:
        explanation = explain(target.network, image.pixels, known=image.known, options=options, device=device)
        record, pixels = describe(target, image, explanation)
        record["sheet"] = SHEET
        folder = (out or run.paths.explanations) / _folder_name(image.name)
        files = {name: png(one) for name, one in pixels.items()}
        files[SHEET] = sheet(explanation, name=record["image"], network=target.name)
        with whole_folder(folder) as beside:  # in place of an earlier one of the same image
            for name, data in files.items():
                with whole(beside / name) as path:
                    path.write_bytes(data)
            write_json(beside / NAME, record)
        records.append({**record, "folder": str(folder)})
    return records


def describe(target: ExplainTarget, image: Image, made: Explanation) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """Return an explanation as JSON holds it, and its images by the names that the JSON gives them."""
    many = len(made.answers) > 1
    cams = {f"cam-{number}.png": cam for number, cam in enumerate(made.cams, 1)}
    layers = {f"layer-{number}.png": one for number, one in enumerate(made.images, 1)}
    record = {
        "image": printable(image.name),
        "part": image.part,
        "network": target.name,
        "model": weights_hash(target.network.classifier),
        "answers": [_answer(answer, many=many) for answer in made.answers],
        "grad-cam": [_cam(cam, file) for file, cam in cams.items()],
        "layers": [_layer(one, file) for file, one in layers.items()],
        "every layer": made.layers,
        "pooled": {"line": pooled_line(made.features), "file": "pooled.png"},
        "features": [float(f"{value:.4g}") for value in made.features.tolist()],
        "file": "image.png",
    }
    images = {file: cam.overlay for file, cam in cams.items()} | {file: one.pixels for file, one in layers.items()}
    return record, images | {"pooled.png": series(made.features), "image.png": made.image}


def read_explanations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the explanations of a run that are whole, each with its folder, the newest first."""
    files = RunFolder(run).explanations.glob(f"[!.]*/{NAME}")
    newest_first = sorted(files, key=lambda path: (-path.stat().st_mtime, path))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in newest_first]


def _folder_name(name: str) -> str:
    """Return letters and digits of an image's name, and a hash, which differs for names of the same letters."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", Path(printable(name)).with_suffix("").as_posix())
    return f"{words[-LONGEST:].strip('-') or 'image'}-{fingerprint(printable(name))[:6]}"


def _answer(answer: Answer, *, many: bool) -> dict[str, Any]:
    return {
        "head": answer.head.name,
        "kind": answer.head.kind,
        "likely": [{"class": name, "probability": round(probability, 6)} for name, probability in answer.likely],
        "given": answer.predicted,
        "label": answer.label,
        "line": answer_line(answer, many=many),
    }


def _cam(cam: Cam, file: str) -> dict[str, Any]:
    point = cam.heat.hottest
    return {
        "head": cam.head,
        "class": cam.name,
        "reasons": list(cam.reasons),
        "probability": round(cam.probability, 6),
        "layer": cam.heat.layer,
        "map": list(cam.heat.side),
        "hottest": None if point is None else [round(share, 4) for share in point],
        "lines": cam_lines(cam),
        "file": file,
    }


def _layer(layer: LayerImage, file: str) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "channels": layer.channels,
        "line": layer_line(layer),
        "file": file,
    }
