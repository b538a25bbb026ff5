"""Predicts images by the network that `assay export --onnx` wrote: python predict_onnx.py model.onnx IMAGE ...

Needs numpy, Pillow and onnxruntime. Prints one JSON object a line: the image, and the probability of each class of each
head. All numbers of the preparation of an image are in the metadata of the network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.images.rgb_square import least_side, square, upright_rgb


def prepare(path: str | Path, preparation: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the input of the network for an image file: float32 (3, S, S), RGB divided by 255."""
    side, size, crop = preparation["side"], preparation["size"], preparation["centre_crop"]
    at_least = least_side(side, size=size, centre_crop=crop)  # of JPEGs, which are read at 1/2, 1/4 or 1/8 down to this
    with open(path, "rb") as file, Image.open(file) as image:
        upright = upright_rgb(image, file, levels=preparation["levels"], at_least=at_least)
    policy, fill = preparation["policy"], tuple(preparation["fill"])
    pixels = np.array(square(upright, side, size=size, policy=policy, centre_crop=crop, fill=fill))
    return np.asarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(255)


def predict(network: str | Path, images: Sequence[str | Path]) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]]]:
    """Return the probabilities (N, W) of image files, and the heads with the columns of each."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    preparation = json.loads(about["preparation"])
    rows = [session.run(["probabilities"], {"images": prepare(path, preparation)[None]})[0] for path in images]
    return np.concatenate(rows), json.loads(about["heads"])


def main() -> None:
    """Print the probabilities of the images that the command line names."""
    network, *images = sys.argv[1:]
    probabilities, heads = predict(network, images)
    for path, row in zip(images, probabilities, strict=True):
        by_head = {
            head["name"]: dict(zip(head["classes"], row[slice(*head["columns"])].tolist(), strict=True))
            for head in heads
        }
        sys.stdout.write(json.dumps({"image": path, **by_head}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
