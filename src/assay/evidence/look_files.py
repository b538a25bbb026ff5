"""What a look becomes: a folder of pictures and of all that is said of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.evidence.look_run import Looking, Picture, looking, read_pictures
from assay.evidence.look_sheet import cam_lines, in_words, maps_line, png, sheet
from assay.evidence.looks import Answered, Cam, Look, Maps, Pixels, Wanted, classes_of, look
from assay.evidence.page.folder import RunFound
from assay.files import fingerprint, whole, whole_folder, write_json
from assay.labels.pictures import shown
from assay.predictions.inference import move, weights_hash
from assay.training.hardware import Hardware

NAME, SHEET = "look.json", "look.png"
LONGEST = 40  # letters of a folder's name that are the picture's


def looks_of(run: Path) -> Path:
    """Where the looks of a run are, a folder each."""
    return run / "pictures" / "look"


def look_at(
    run: RunFound,
    pictures: Sequence[str],
    *,
    wanted: Wanted,
    member: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Look at pictures with the newest model of a run, finished or not, and write what is seen.

    `pictures` are files, or ids of the run. Gives what each look.json holds, and its folder.
    Raises RunError, ModelError or DataError as `looking`, `read_pictures` and `look` do; nothing is written then.
    """
    chosen = looking(run, member)
    read = read_pictures(run, pictures, chosen)
    classes_of(chosen.network.space, wanted.classes)
    move(chosen.network.classifier, Hardware(device))
    found = []
    for picture in read:
        seen = look(chosen.network, picture.pixels, known=picture.known, wanted=wanted, device=device)
        told, images = described(chosen, picture, seen)
        folder = (out or looks_of(run.folder)) / _folder_name(picture.name)
        files = {name: png(pixels) for name, pixels in images.items()}
        files[SHEET] = sheet(seen, name=told["picture"], network=chosen.name)
        _write(folder, told | {"sheet": SHEET}, files)
        found.append({**told, "sheet": SHEET, "folder": str(folder)})
    return found


def described(chosen: Looking, picture: Picture, seen: Look) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """All that is said of a look, as JSON holds it, and its pictures by the names it gives them."""
    many = len(seen.answers) > 1
    cams = {f"cam-{number}.png": cam for number, cam in enumerate(seen.cams, 1)}
    maps = {f"layer-{number}.png": one for number, one in enumerate(seen.maps, 1)}
    told = {
        "picture": shown(picture.name),
        "part": picture.part,
        "network": chosen.name,
        "model": weights_hash(chosen.network.classifier),
        "answers": [_answer(answered, many=many) for answered in seen.answers],
        "grad-cam": [_cam(cam, file) for file, cam in cams.items()],
        "layers": [_maps(one, file) for file, one in maps.items()],
        "every layer": [{"name": name, "shape": list(shape)} for name, shape in seen.layers],
        "features": [float(f"{value:.4g}") for value in seen.features.tolist()],
        "file": "picture.png",
    }
    images = {file: cam.overlay for file, cam in cams.items()} | {file: one.pixels for file, one in maps.items()}
    return told, images | {"picture.png": seen.picture}


def kept(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The looks of a run that are whole, each with its folder, the newest first."""
    files = sorted(looks_of(run).glob(f"[!.]*/{NAME}"), key=lambda path: (-path.stat().st_mtime, path))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in files]


def _write(folder: Path, told: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """The files of a look, in place of an earlier one at the same picture."""
    with whole_folder(folder) as beside:
        for name, data in files.items():
            with whole(beside / name) as place:
                place.write_bytes(data)
        write_json(beside / NAME, told)


def _folder_name(name: str) -> str:
    """Letters and digits of a picture's name, and a hash that tells it from others of the same."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", Path(shown(name)).with_suffix("").as_posix())
    return f"{words[-LONGEST:].strip('-') or 'picture'}-{fingerprint(shown(name))[:6]}"


def _answer(answered: Answered, *, many: bool) -> dict[str, Any]:
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
