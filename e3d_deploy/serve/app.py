"""FastAPI application that serves the page, REST, WebSocket and metrics of one model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.websockets import WebSocket

from e3d_deploy import __version__
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve import error_responses
from e3d_deploy.serve.posts import clip_routes, predict_routes
from e3d_deploy.serve.rest import health_routes, model_routes, page_routes
from e3d_deploy.serve.security import Guard
from e3d_deploy.serve.service import Service
from e3d_deploy.serve.settings import ServerSettings
from e3d_deploy.serve.websocket import Connection


def create_app(predictor: Predictor, settings: ServerSettings) -> FastAPI:
    """Return the application of one model.

    `app.state.service` is the state that the endpoints share. The state is closed when the application shuts down.

    Raises:
        ConfigError: the renewal is unknown, or a limit is invalid.
        ResourceLimit: the memory limit is too small for one stream.
    """
    service = Service(predictor, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(service.expire())
        try:
            yield
        finally:
            expiring.cancel()
            with suppress(asyncio.CancelledError):
                await expiring
            await service.drain()
            await asyncio.to_thread(service.close)

    # The documentation pages of FastAPI are switched off, because they load scripts from a third party.
    app = FastAPI(title="e3d serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    error_responses.install(app)
    app.include_router(page_routes())
    app.include_router(health_routes(service))
    # `Guard` checks the token before a body is read; these dependencies only describe the check in OpenAPI.
    secured = [Depends(HTTPBearer(auto_error=False))] if settings.token is not None else []
    refusals = error_responses.openapi_responses(*((403,) if settings.token is None else (401, 403)))
    for routes in (model_routes, clip_routes, predict_routes):
        app.include_router(routes(service), dependencies=secured, responses=refusals)

    @app.websocket("/v1/live")
    async def live(websocket: WebSocket) -> None:
        await Connection(websocket, service).run()

    # `Guard` wraps the middleware that answers unexpected errors, so that those responses also get its headers.
    app.middleware_stack = Guard(app.build_middleware_stack(), settings, service.metrics)
    return app
