"""The application: the routes over one model, with all that surrounds them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from unmask import __version__
from unmask.decoding.language_model import LanguageModel
from unmask.engine.engine import Engine
from unmask.errors import UsageError
from unmask.evaluation.fingerprint import fingerprint
from unmask.serving.backend import Backend
from unmask.serving.desk import Desk
from unmask.serving.envelope import Envelope, error_response
from unmask.serving.errors import ClientGoneError, ServingError
from unmask.serving.keys import Keys
from unmask.serving.metrics import Metrics
from unmask.serving.record import internal_error, record_of
from unmask.serving.routes import API, PROBES
from unmask.serving.service import Service
from unmask.serving.settings import Settings
from unmask.serving.translate import Translator

PLAYGROUND = Path(__file__).with_name("playground")
"""The page at the root, and in its folder `assets` what it needs."""

OPEN_PATHS = ("/health", "/ready", "/openapi.json")
"""What needs no key, beside that page."""

_CLIENT_GONE = 499  # what nginx logs; nobody reads the response


def create_app(model: LanguageModel, engine: Engine, settings: Settings) -> FastAPI:
    """Return the application; the engine is its own from then on, and runs while the application does."""
    metrics, pool = Metrics(), engine.scheduler.pool
    service = Service(engine, metrics, max_queue=settings.max_queue)
    return app_over(service, model, settings, metrics, capacity=pool.num_pages * pool.page_size)


def app_over(
    service: Backend, model: LanguageModel, settings: Settings, metrics: Metrics, *, capacity: int
) -> FastAPI:
    """Return the application over a backend that holds texts of `capacity` tokens, which runs while it does."""
    capacity = min(model.denoiser.transformer.config.max_positions, capacity)
    translator = Translator(model, settings, capacity=capacity)
    app = FastAPI(title="unmask", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.desk = Desk(model, settings, service, metrics, translator, fingerprint(model))
    # For the interface's description; the envelope checks keys before a body is read.
    bearer = Depends(HTTPBearer(auto_error=False, description="One of the server's API keys."))
    app.include_router(API, dependencies=[bearer] if settings.api_keys else [])
    app.include_router(PROBES)
    app.add_route("/", _page)
    app.mount("/assets", StaticFiles(directory=PLAYGROUND / "assets"))
    assets = [f"/{file.relative_to(PLAYGROUND)}" for file in PLAYGROUND.glob("assets/*")]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UsageError, _usage_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(Exception, _failure)
    app.add_middleware(
        Envelope,
        keys=Keys(settings.api_keys),
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        open_paths=("/", *OPEN_PATHS, *assets),
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Backend = app.state.desk.service
    service.start()
    try:
        yield
    finally:
        await service.stop()


async def _page(request: Request) -> Response:
    return FileResponse(PLAYGROUND / "index.html", headers={"Cache-Control": "no-cache"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ServingError):
        what = f"{request.method} {request.url.path}"
        error = ServingError(error.status_code, f"{what}: {error.detail}", headers=error.headers)
    return error_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(ServingError.of_validation(error.errors()))


async def _usage_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UsageError)
    return error_response(ServingError.of_usage(error))


async def _client_gone(request: Request, error: Exception) -> Response:
    record_of(request.scope).outcome = "disconnected"
    return Response(status_code=_CLIENT_GONE)


async def _failure(request: Request, error: Exception) -> Response:
    return error_response(internal_error(record_of(request.scope)))
