"""The images of a request, a form of files or JSON with base64, and what it may cost."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from itertools import islice

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from assay.images.decode import HeldImage

FIELD = "images"  # of a form
LONGEST_NAME = 255  # letters
KINDS = (
    "Send files as multipart/form-data, each in a field `images`, or JSON as application/json: "
    '{"images": [{"data": BASE64}]}.'
)


class Limits(BaseModel):
    """What a request may cost."""

    bytes: int = Field(20_000_000, ge=1, description="Bytes of a request.")
    pixels: int = Field(50_000_000, ge=1, description="Pixels of an image.")
    images: int = Field(32, ge=1, description="Images of a request.")
    requests: int = Field(64, ge=1, description="Requests that are answered at a time, by each process.")
    seconds: float = Field(30.0, gt=0, description="Seconds that a request may take.")


class NamedImage(BaseModel):
    """An image in JSON."""

    model_config = ConfigDict(extra="forbid")
    data: str = Field(description="The bytes of an image file, in base64.")
    name: str | None = Field(None, max_length=LONGEST_NAME, description="What the answer calls it.")


class ImagesBody(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(extra="forbid")
    images: list[NamedImage] = Field(min_length=1)


def images_of(content_type: str, body: bytes, most: int) -> list[HeldImage]:
    """Return the images of a request. Raises HTTPException, with a status of 4xx, for any other body."""
    images = list(islice(_images_of(content_type, body), most + 1))  # a body may have a million parts
    if len(images) > most:
        raise HTTPException(
            413, f"these are more images than {most}, the most at a time. Send the others in further requests."
        )
    if not images:
        raise HTTPException(422, f"there is no image. {KINDS}")
    return images


def _images_of(content_type: str, body: bytes) -> Iterator[HeldImage]:
    head = Message()
    head["content-type"] = content_type
    kind = head.get_content_type()
    if kind == "application/json":
        return _of_json(body)
    if kind != "multipart/form-data":
        raise HTTPException(415, f"a body of type {content_type[:80] or 'unknown'} is not read. {KINDS}")
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not re.fullmatch(r"[ -~]{1,70}", boundary):
        raise HTTPException(400, "the content type names no boundary of the form's parts. Have a library write it.")
    return (_of_part(*part, number) for number, part in enumerate(parts(body, boundary.encode()), 1))


def parts(body: bytes, boundary: bytes) -> Iterator[tuple[Message, bytes]]:
    """Yield the headers and the content of each part of a form (RFC 2046, 5.1.1; RFC 7578).

    Raises HTTPException where it has no such part, or ends before its last boundary: nothing of a request that was cut
    off is taken for the whole.
    """
    mark = b"\r\n--" + boundary
    at = 0 if body.startswith(mark[2:]) else body.find(mark) + 2
    if at == 1:
        raise HTTPException(400, "the form does not have the boundary that its content type names.")
    at += len(mark) - 2
    while body[at : at + 2] != b"--":
        end = body.find(mark, at)
        if end < 0:
            raise HTTPException(400, "the form ends before its last boundary: it was cut off, or is not one.")
        begun = body.find(b"\r\n", at, end + 2)
        head, gap, content = body[begun + 2 : end].partition(b"\r\n\r\n")
        if begun < 0 or body[at:begun].strip(b" \t") or not gap:
            raise HTTPException(400, "a part of the form has no headers.")
        yield HeaderParser().parsestr(head.decode("utf-8", "replace")), content  # browsers send names in UTF-8
        at = end + len(mark)


def _of_part(head: Message, content: bytes, number: int) -> HeldImage:
    name = head.get_param("name", header="content-disposition")
    if name != FIELD:
        raise HTTPException(422, f"the form has a field {str(name)[:80]!r}. {KINDS}")
    file = head.get_filename() or f"image {number}"
    if len(file) > LONGEST_NAME:
        raise HTTPException(422, f"the name of file {number} has more than {LONGEST_NAME} letters.")
    return HeldImage(file, content)


def _of_json(body: bytes) -> Iterator[HeldImage]:
    try:
        given = ImagesBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{at}: {first['msg']}. {KINDS}") from error
    for number, one in enumerate(given.images):
        try:
            content = base64.b64decode(one.data, validate=True)
        except ValueError as error:
            raise HTTPException(422, f"images.{number}.data: is not base64 ({error}).") from error
        yield HeldImage(one.name or f"image {number + 1}", content)
