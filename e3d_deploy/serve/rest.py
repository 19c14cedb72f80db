"""Endpoints of the page, health checks, metrics and the description of the model."""

from pathlib import Path

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.responses import FileResponse

from e3d_deploy.serve.error_responses import Problem, openapi_responses
from e3d_deploy.serve.metrics import CONTENT_TYPE
from e3d_deploy.serve.page_files import PAGE_TYPES, page_files
from e3d_deploy.serve.service import Service


class SourceAnswer(BaseModel):
    id: str
    name: str


class LimitsAnswer(BaseModel):
    upload_bytes: int
    message_bytes: int
    sessions: int


class ModelAnswer(BaseModel):
    """Description of the served model, its sources and the limits of the server."""

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


def page_routes() -> APIRouter:
    """Return the routes of the page, which the OpenAPI description omits."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: Path) -> None:
        async def send() -> FileResponse:
            return FileResponse(file, media_type=PAGE_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

        router.add_api_route(path, send, methods=["GET", "HEAD"])

    for path, file in page_files().items():
        add(path, file)
    return router


def health_routes(service: Service) -> APIRouter:
    """Return the routes of health checks."""
    router = APIRouter()

    @router.get("/healthz", summary="Health of the process")
    async def healthz() -> HealthAnswer:
        return HealthAnswer(status="ok")

    @router.get(
        "/readyz", summary="Readiness: 503 only while the server is shutting down", responses=openapi_responses(503)
    )
    async def readyz() -> HealthAnswer:
        if service.stopping:
            raise Problem(503, "stopping", "the server is shutting down", retry=True)
        return HealthAnswer(status="ready")

    for path, health in (("/healthz", healthz), ("/readyz", readyz)):  # some monitors send HEAD requests
        router.add_api_route(path, health, methods=["HEAD"], include_in_schema=False)
    return router


def model_routes(service: Service) -> APIRouter:
    """Return the routes of the metrics and of the description of the model."""
    router = APIRouter()
    settings, predictor = service.settings, service.predictor

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

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

    return router
