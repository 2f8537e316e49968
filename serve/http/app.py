"""The application and the process that serves it."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute

from prompts.template import PromptTemplate
from serve.engine.protocol import Engine
from serve.http import completions, errors, routes
from serve.http.border import Border
from serve.http.limits import HttpLimits
from serve.http.metrics import Metrics
from serve.http.service import Service


def bare_app() -> FastAPI:
    """The routes with nothing behind them: what the schema is written from."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service
        await service.engine.start(service.metrics)
        yield
        await service.engine.stop()

    # The pages that FastAPI makes of a schema load scripts from elsewhere.
    app = FastAPI(
        title="sidereal",
        version="1",
        description="A generative recommender behind OpenAI's routes and a few of its own.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(routes.router)
    app.include_router(completions.router)
    app.include_router(routes.open_router)
    errors.install(app)
    return app


def make_app(
    name: str, template: PromptTemplate, engine: Engine, limits: HttpLimits, keys: Sequence[str]
) -> Border:
    """An ASGI application that serves one model directory by one engine.

    Args:
        name: what clients call the model.
        keys: API keys of clients; empty: open to everybody who reaches the port.
    """
    app = bare_app()
    metrics = Metrics(engine, [route.path for route in app.routes if isinstance(route, APIRoute)])
    app.state.service = Service(name, template, engine, limits, metrics)
    app.state.started = int(time.time())
    return Border(app, keys, limits, metrics)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def serve(app: Any, host: str, port: int, shutdown_s: int, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests end; the signal is then raised again.

    Args:
        shutdown_s: how long running requests may take after the signal.
        ready: called once requests are answered.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=shutdown_s,
        lifespan="on",
    )
    _Server(config, ready).run()
