"""A folder from which `docker build` makes an image that serves a model: Dockerfile, requirements, and the model."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

from assay.errors import DISTRIBUTION
from assay.files import link, whole_folder, write_text
from assay.models.ensemble import model_files
from assay.run.environment import environment

TORCH = ("torch", "torchvision")
DOCKERFILE = """\
# Serves the model in {folder}/. In the folder of this file:
#
#     docker build -t {tag} .
#     docker run -p 127.0.0.1:8000:8000 -e ASSAY_TOKEN=SECRET {tag}
#
# The page is at http://127.0.0.1:8000. Options of `assay serve` may follow the name of the image. For a GPU, build with
# --build-arg WHEELS=https://download.pytorch.org/whl/cu128 and run with --gpus all.
FROM python:{python}-slim
ARG WHEELS=https://download.pytorch.org/whl/cpu
WORKDIR /srv
# A wheel of {distribution} that lies here is taken where the package index does not have that version.
COPY requirements.txt *.whl ./
RUN pip install --no-cache-dir --index-url $WHEELS {torch} \\
 && pip install --no-cache-dir --find-links . -r requirements.txt
COPY ["{folder}", "{folder}"]
USER 65534:65534
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD {check}
ENTRYPOINT {entry}
"""
CHECK = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"


def write_docker(model: Path, folder: Path, *, name: str) -> None:
    """Write the folder, whole or not at all: the files of a model are linked where the disk can.

    The packages on which probabilities depend have the versions of this process. Raises RunError, SpaceError.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_") or "model"
    packages = environment(processes=1)["packages"]
    assert isinstance(packages, dict)
    pinned = {package: f"{package}=={version.partition('+')[0]}" for package, version in packages.items()}
    text = DOCKERFILE.format(
        folder=safe,
        tag=safe.lower(),
        distribution=DISTRIBUTION,
        python=".".join(platform.python_version_tuple()[:2]),
        torch=" ".join(pinned[package] for package in TORCH),
        check=json.dumps(["python", "-c", CHECK]),
        entry=json.dumps(["assay", "serve", safe, "--host", "0.0.0.0"]),
    )
    with whole_folder(folder) as beside:
        for file in model_files(model):
            link(file, beside / safe / file.relative_to(model))
        write_text(beside / "requirements.txt", "\n".join(pinned.values()) + "\n")
        write_text(beside / "Dockerfile", text)
