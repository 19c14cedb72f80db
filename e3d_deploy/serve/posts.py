"""Endpoints that accept uploads: /v1/clips and /v1/predict."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from e3d_deploy.serve.checks import ARRAYS, save
from e3d_deploy.serve.error_responses import Problem, openapi_responses
from e3d_deploy.serve.predict import MEDIA_TYPES, PredictOptions, predict
from e3d_deploy.serve.service import Service
from e3d_deploy.serve.uploads import MAX_PICTURES, check_fields, files_of, form_of

REFUSALS = openapi_responses(400, 408, 413, 415, 422, 429, 500, 503)
"""OpenAPI description of the error responses to a request with files."""
FORECAST: dict[str, Any] = {
    "description": "The forecast: the array `frames` [1, horizon, H, W, C], or a video",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
}
"""OpenAPI description of the response with a forecast."""


class ClipAnswer(BaseModel):
    source: str
    """Name of the clip for the message `open` on the WebSocket."""


def clip_routes(service: Service) -> APIRouter:
    """Return the route that stores a clip for a live session."""
    router = APIRouter()
    most_bytes = service.settings.max_upload_bytes

    @router.post(
        "/v1/clips",
        status_code=201,
        summary="Upload a clip to play in a live session",
        responses=REFUSALS,
        openapi_extra=form_description({}, most_files=1),
    )
    async def clips(request: Request) -> ClipAnswer:
        with service.working():
            async with form_of(request, most_bytes, most_files=1) as form:
                check_fields(form, ())
                files = files_of(form)

                def keep() -> str:
                    with tempfile.TemporaryDirectory(prefix="e3d-upload-") as folder:
                        [upload] = save(files, Path(folder), most_bytes)
                        if upload.path.suffix in ARRAYS:
                            raise Problem(
                                422,
                                "unreadable",
                                f"{upload.name}: got an array, expected a video or GIF; send arrays to /v1/predict",
                            )
                        return service.clips.keep(upload.path, upload.name).id

                return ClipAnswer(source=f"clip:{await service.compute(keep)}")

    return router


def predict_routes(service: Service) -> APIRouter:
    """Return the route that predicts the frames after a clip."""
    router = APIRouter()
    most_bytes, most = service.settings.max_upload_bytes, service.settings.horizon

    @router.post(
        "/v1/predict",
        summary="Predict the frames that follow a clip",
        response_class=Response,
        responses={200: FORECAST, **REFUSALS},
        openapi_extra=form_description(
            {
                "horizon": {"type": "integer", "minimum": 1, "maximum": most},
                "format": {"type": "string", "enum": list(MEDIA_TYPES)},
            },
            most_files=MAX_PICTURES,
        ),
    )
    async def predictions(request: Request) -> Response:
        with service.working():
            async with form_of(request, most_bytes, most_files=MAX_PICTURES) as form:
                options = _options_of(check_fields(form, ("horizon", "format")), most)
                files = files_of(form)

                def work() -> bytes:
                    with tempfile.TemporaryDirectory(prefix="e3d-upload-") as folder:
                        uploads = save(files, Path(folder), most_bytes)
                        return predict(service, uploads, Path(folder), options)

                content = await service.compute(work)
        service.metrics.predictions.inc()
        name = f'attachment; filename="forecast.{options.format}"'
        return Response(content, media_type=MEDIA_TYPES[options.format], headers={"Content-Disposition": name})

    return router


def _options_of(fields: Mapping[str, str], most: int) -> PredictOptions:
    horizon, format_ = fields.get("horizon", str(most)), fields.get("format", "npz")
    if not (horizon.isascii() and horizon.isdigit() and 1 <= int(horizon) <= most):
        raise Problem(422, "horizon", f"horizon: got {horizon[:40]!r}, expected a whole number from 1 to {most}")
    if format_ not in MEDIA_TYPES:
        raise Problem(422, "format", f"format: got {format_[:40]!r}, expected one of {', '.join(MEDIA_TYPES)}")
    return PredictOptions(horizon=int(horizon), format=format_)


def form_description(fields: dict[str, Any], *, most_files: int) -> dict[str, Any]:
    """Return the OpenAPI description of a form.

    Args:
        fields: schemas of the text fields by name.
        most_files: maximum number of files in the field `clip`.
    """
    clip: dict[str, Any] = {"type": "string", "format": "binary"}
    if most_files > 1:
        clip = {"type": "array", "items": clip, "minItems": 1, "maxItems": most_files}
    schema = {
        "type": "object",
        "properties": {"clip": clip, **fields},
        "required": ["clip"],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
