"""REST endpoints."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.responses import FileResponse

from e3d_deploy.serve.answers import Problem, answers
from e3d_deploy.serve.metrics import CONTENT_TYPE
from e3d_deploy.serve.page_files import PAGE_TYPES, page_files
from e3d_deploy.serve.predict import MEDIA_TYPES, Wish, predict
from e3d_deploy.serve.service import Service
from e3d_deploy.serve.uploads import ARRAYS, MOST_PICTURES, check_fields, files_of, form_of, save

BUSY = answers(400, 408, 413, 415, 422, 429, 500, 503)


class SourceAnswer(BaseModel):
    id: str
    name: str


class LimitsAnswer(BaseModel):
    upload_bytes: int
    message_bytes: int
    sessions: int


class ModelAnswer(BaseModel):
    """Model that is served, and its limits."""

    name: str
    backend: str
    precision: str
    image_size: tuple[int, int]
    channels: int
    context: int
    horizon: int
    frames_per_second: float | None
    renewal: str
    sources: list[SourceAnswer]
    limits: LimitsAnswer


class HealthAnswer(BaseModel):
    status: str


class ClipAnswer(BaseModel):
    source: str
    """Name of the clip for `open` on the WebSocket."""


def page_routes() -> APIRouter:
    """Return the routes of the page, which is no part of the API."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: Path) -> None:
        async def send() -> FileResponse:
            return FileResponse(file, media_type=PAGE_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

        router.add_api_route(path, send, methods=["GET", "HEAD"])

    for path, file in page_files().items():
        add(path, file)
    return router


def health_routes(service: Service) -> APIRouter:
    """Return the routes that tell how the server is."""
    router = APIRouter()

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> HealthAnswer:
        return HealthAnswer(status="ok")

    @router.get("/readyz", summary="Whether new sessions are taken", responses=answers(503))
    async def readyz() -> HealthAnswer:
        if service.stopping:
            raise Problem(503, "stopping", "the server stops", retry=True)
        return HealthAnswer(status="ready")

    return router


def api_routes(service: Service) -> APIRouter:
    """Return the routes of the API."""
    router = APIRouter()
    settings, predictor = service.settings, service.predictor

    @router.get(
        "/metrics",
        summary="Metrics of Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(service.meters.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/v1/model", summary="The model, its sources and limits")
    async def model() -> ModelAnswer:
        interval_ms = predictor.card.window and predictor.card.window.interval_ms
        return ModelAnswer(
            name=settings.name,
            backend=predictor.backend.name,
            precision=settings.precision,
            image_size=predictor.config.image_size,
            channels=predictor.config.channels,
            context=predictor.context_length,
            horizon=settings.horizon,
            frames_per_second=1000 / interval_ms if interval_ms else None,
            renewal=str(predictor.renewal(settings.renewal)),
            sources=[SourceAnswer(id=offer.id, name=offer.name) for offer in settings.offers],
            limits=LimitsAnswer(
                upload_bytes=settings.max_upload_bytes,
                message_bytes=service.message_bytes,
                sessions=settings.max_sessions,
            ),
        )

    @router.post(
        "/v1/clips",
        status_code=201,
        summary="Upload a clip, to be played in a live session",
        responses=BUSY,
        openapi_extra=form_description({}, most_files=1),
    )
    async def clips(request: Request) -> ClipAnswer:
        with service.working():
            async with form_of(request, settings.max_upload_bytes, most_files=1) as form:
                check_fields(form, ())
                uploaded = files_of(form)

                def keep() -> str:
                    with tempfile.TemporaryDirectory(prefix="e3d-upload-") as folder:
                        [upload] = save(uploaded, Path(folder), settings.max_upload_bytes)
                        if upload.path.suffix in ARRAYS:
                            raise Problem(422, "unreadable", f"{upload.name}: an array does not play; send a video")
                        return service.clips.keep(upload.path, upload.name).id

                return ClipAnswer(source=f"clip:{await service.compute(keep)}")

    @router.post(
        "/v1/predict",
        summary="Predict the frames that follow a clip",
        response_class=Response,
        responses={
            200: {
                "description": "The forecast: array `frames` [1, horizon, H, W, C], or a video",
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
            },
            **BUSY,
        },
        openapi_extra=form_description(
            {
                "horizon": {"type": "integer", "minimum": 1, "maximum": settings.horizon},
                "format": {"type": "string", "enum": list(MEDIA_TYPES)},
            },
            most_files=MOST_PICTURES,
        ),
    )
    async def predictions(request: Request) -> Response:
        with service.working():
            async with form_of(request, settings.max_upload_bytes, most_files=MOST_PICTURES) as form:
                wish = _wish(check_fields(form, ("horizon", "format")), settings.horizon)
                uploaded = files_of(form)

                def work() -> bytes:
                    folder = Path(tempfile.mkdtemp(prefix="e3d-upload-"))
                    try:
                        uploads = save(uploaded, folder, settings.max_upload_bytes)
                        return predict(service, uploads, folder, wish)
                    finally:
                        shutil.rmtree(folder, ignore_errors=True)

                content = await service.compute(work)
        service.meters.predictions.inc()
        name = f'attachment; filename="forecast.{wish.format}"'
        return Response(content, media_type=MEDIA_TYPES[wish.format], headers={"Content-Disposition": name})

    return router


def _wish(fields: Any, most: int) -> Wish:
    horizon, format_ = fields.get("horizon", str(most)), fields.get("format", "npz")
    if not (horizon.isascii() and horizon.isdigit() and 1 <= int(horizon) <= most):
        raise Problem(422, "horizon", f"horizon: expected a whole number from 1 to {most}")
    if format_ not in MEDIA_TYPES:
        raise Problem(422, "format", f"format: expected one of {', '.join(MEDIA_TYPES)}")
    return Wish(horizon=int(horizon), format=format_)


def form_description(fields: dict[str, Any], *, most_files: int) -> dict[str, Any]:
    """Return the description of a form for OpenAPI: the files of `clip`, and fields."""
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
