"""The OpenAPI document of a server, which its page /docs draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from assay import __version__
from assay.apps.serve.requests import NamedImage

Json = Mapping[str, object]
ERRORS = {
    "400": "The request is no valid form, or was cut off.",
    "401": "The token is missing or wrong.",
    "403": "A page of another site asks.",
    "404": "There is nothing at this address.",
    "408": "The request took too long to arrive.",
    "413": "Too many bytes, pixels or images.",
    "415": "The body is of another type, or compressed.",
    "422": "An image cannot be read, or a value is wrong.",
    "500": "A fault of the server.",
    "503": "Too many requests, too slow an answer, or the server is being stopped. Ask again later.",
}
HEADS: Json = {
    "type": "object",
    "description": "By head.",
    "additionalProperties": {
        "type": "object",
        "required": ["label", "probabilities"],
        "properties": {
            "label": {
                "description": "The predicted class; of a head of tags a list of those predicted.",
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            },
            "probabilities": {
                "type": "object",
                "description": "By class, the most probable first.",
                "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "set": {
                "type": "array",
                "description": "With coverage: classes that hold the true one so often; of tags, that share of them.",
                "items": {"type": "string"},
            },
        },
    },
}


def document(*, token: bool) -> Json:
    """Return the document, version 3.1; with `token` one is needed."""
    top = {
        "name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1},
        "description": "Only so many of the most probable classes of each head.",
    }  # fmt: skip
    coverage = {
        "name": "coverage", "in": "query",
        "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "description": "How often the set of classes in the answer is to hold the true one, such as 0.9.",
    }  # fmt: skip
    classes = {
        "name": "class", "in": "query", "schema": {"type": "array", "items": {"type": "string"}},
        "description": "A class to explain beside those predicted; may be repeated.",
    }  # fmt: skip
    predict = _post("Predict the classes of images", _predictions(), parameters=[top, coverage])
    explain = _post("Explain the prediction for an image", _explanation(), parameters=[classes])
    paths: dict[str, Json] = {
        "/predict": {"post": predict},
        "/explain": {"post": explain},
        "/model": {"get": _get("The model: its heads, their classes, and the limits of a request")},
        "/healthz": {"get": _get("Whether the server runs", public=True)},
        "/readyz": {"get": _get("Whether it answers: 503 once it is being stopped", "503", public=True)},
        "/metrics": {"get": _get("Counts for Prometheus", kind="text/plain")},
    }
    secured: Json = {
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }
    about = {"title": "Assay", "version": __version__, "description": "Predictions of a trained model."}
    return {"openapi": "3.1.0", "info": about, "paths": paths, **(secured if token else {})}


def _post(summary: str, answer: Json, *, parameters: list[Json]) -> Json:
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "contentMediaType": "image/*"}}
    listed = {"type": "array", "minItems": 1, "items": NamedImage.model_json_schema()}
    content = {
        "multipart/form-data": {"schema": _object({"images": files})},
        "application/json": {"schema": _object({"images": listed})},
    }
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _response("The answer.", answer), **_errors(ERRORS)},
    }


def _get(summary: str, *errors: str, kind: str = "application/json", public: bool = False) -> Json:
    schema = {"type": "string" if kind == "text/plain" else "object"}
    answer = {"description": "The answer.", "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": answer, **_errors(errors)}, **({"security": []} if public else {})}


def _errors(codes: Iterable[str]) -> dict[str, Json]:
    schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {code: _response(ERRORS[code], schema) for code in codes}


def _response(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _predictions() -> Json:
    rank = {"type": "number", "description": "How foreign the image is, 0 to 1; where the model keeps training images."}
    one = _object({"image": _text("The name that it came with."), "heads": HEADS}, {"unlike_training": rank})
    listed = {"type": "array", "description": "In the order of the images.", "items": one}
    return _object({"model": _text("The name of the run."), "predictions": listed})


def _explanation() -> Json:
    address = _text("A data: address of a PNG or JPEG image.")
    cam = {
        "head": _text("The head of the class."),
        "label": _text("The class."),
        "probability": {"type": "number", "description": "Of the class."},
        "image": address,
    }
    near = {
        "labels": {"type": "object", "description": "By head.", "additionalProperties": {"type": "string"}},
        "similarity": {"type": "number", "description": "Cosine of the features: 1 is the same."},
        "image": address,
    }
    return _object(
        {
            "image": _text("The name that it came with."),
            "cams": {"type": "array", "description": "Grad-CAM of the predicted classes.", "items": _object(cam)},
            "neighbours": {"type": "array", "description": "The nearest training images.", "items": _object(near)},
            "note": _text("Why there are no neighbours."),
        }
    )


def _object(required: Json, more: Json | None = None) -> Json:
    return {"type": "object", "required": list(required), "properties": {**required, **(more or {})}}


def _text(description: str) -> Json:
    return {"type": "string", "description": description}
