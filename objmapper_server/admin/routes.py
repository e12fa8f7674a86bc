"""The routes of the admin endpoint, with their descriptions for the OpenAPI document."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from h11 import LocalProtocolError
from pydantic import BaseModel, ConfigDict, Field, create_model

from objmapper_server.admin.auth import AccessControl
from objmapper_server.admin.metrics import Exposition
from objmapper_server.admin.pages import Page
from objmapper_server.concurrency import TRANSPORTS, Concurrency
from objmapper_server.errors import ConfigError, NotRunning
from objmapper_server.request_records import Recorded, RecordedRequest
from objmapper_server.settings.effective import Setting, effective_settings
from objmapper_server.settings.listen_address import ListenAddress
from objmapper_server.statistics import Statistics, bounds_us

if TYPE_CHECKING:
    from objmapper_server.server import Server

LOG: Final = logging.getLogger(__name__)
#: Seconds for which one `POST /watch` records requests.
WATCH_TIME: Final = 5.0
#: Bounds of the dashboard's histograms in microseconds: twelve a decade, from 1 µs to 10 s.
DASHBOARD_BOUNDS_US: Final = bounds_us((1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2), minimum=1.0)


class Problem(BaseModel):
    """The reason for which a request was rejected."""

    detail: str


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the server serves requests, and the reason if not."""

    status: Literal["ready", "draining", "root-gone"]
    reason: str | None = None
    failing_origins: dict[str, str] | None = None  #: mount → why its store fails; its cached objects are served


class Draining(BaseModel):
    """The server accepts no more connections; `finished`: all pending requests are done."""

    status: Literal["draining"] = "draining"
    finished: bool


class Latencies(BaseModel):
    """Cumulative histograms of latencies since start; the last number of each list is the total."""

    bounds_us: list[float]
    total: list[int]
    transports: dict[str, list[int]]


class Overview(BaseModel):
    """The data of the dashboard: the documents of ``/stats``, ``/latency`` and ``/slow``."""

    stats: Statistics
    latency: Latencies
    slow: tuple[RecordedRequest, ...]


class Watch(BaseModel):
    """The latency in milliseconds above which requests are recorded."""

    model_config = ConfigDict(extra="forbid")

    slower_than_ms: float = Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)


class Watching(BaseModel):
    """The seconds for which requests are recorded, and the number of the last record before."""

    seconds: float
    last: int


class Changes(BaseModel):
    """The settings that changed, and those that differ and need a restart."""

    changed: list[str]
    needs_restart: list[str]


#: The new concurrency model of each named transport.
Change: Final = create_model(
    "Change",
    __config__=ConfigDict(extra="forbid"),
    __doc__="The new concurrency model of each named transport.",
    **cast("dict[str, Any]", dict.fromkeys(TRANSPORTS, (Concurrency | None, None))),
)

COMMON_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    403: {"model": Problem, "description": "Host or Origin does not name this server"},
    503: {"model": Problem, "description": "The server is stopping, or the machine has no threads or descriptors left"},
}
WRITE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": Problem, "description": "The token is missing or wrong"},
    413: {"model": Problem, "description": "The content is too large"},
}
BEARER: Final = [Depends(HTTPBearer(auto_error=False, description="`admin_token`; not needed over the Unix socket."))]


def create_application(server: "Server", listen: str = "") -> FastAPI:
    """Return the endpoint's application for `server`, which listens on `listen`."""
    app = FastAPI(
        title="objmapper",
        version=server.version,
        description="The statistics and the state of one objmapper server, and changes while it runs.",
        docs_url=None,
        redoc_url=None,
        responses=COMMON_RESPONSES,
    )
    bound_host = None if listen.startswith("unix:") or not listen else ListenAddress.parse(listen, 0).host
    app.add_middleware(
        AccessControl,
        bound_host=bound_host,
        token=lambda: server.config.admin_token,
        names=lambda: server.config.admin_host,
    )
    _add_reads(app, server)
    _add_writes(app, server)
    _add_pages(app)
    _add_error_handlers(app)
    return app


def _add_reads(app: FastAPI, server: "Server") -> None:
    exposition = Exposition(server)

    @app.get("/stats")
    async def stats() -> Statistics:
        """Return statistics in total, by transport, model and mode; times over the last minute and since start."""
        return server.statistics()

    @app.get("/latency")
    async def latency() -> Latencies:
        """Return cumulative histograms of latencies since start; the difference of two is the time in between."""
        return _latencies(server)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Return the metrics in the text format of Prometheus, or as OpenMetrics if the client accepts it."""
        content, content_type = exposition.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @app.get("/slow")
    async def slow() -> tuple[RecordedRequest, ...]:
        """Return the slowest requests of the last minute, slowest first, with the parts of their time."""
        return server.slow_requests()

    @app.get("/overview")
    async def overview() -> Overview:
        """Return `/stats`, `/latency` and `/slow` in one document."""
        return Overview(stats=server.statistics(), latency=_latencies(server), slow=server.slow_requests())

    @app.get("/requests", responses={422: {"model": Problem, "description": "A parameter is not a number"}})
    async def requests(
        slower_than_ms: Annotated[float | None, Query(ge=0, le=1e9)] = None,
        after: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    ) -> Recorded:
        """Return the records after a number; without `after`, only the number to start with.

        `slower_than_ms` filters by latency. `POST /watch` selects the requests to record.
        """
        recorded = server.recorded_requests((1 << 63) - 1 if after is None else after)
        # A restarted server counts from 0.
        if after is not None and after > recorded.last:
            recorded = server.recorded_requests(0)
        return recorded.slower_than(slower_than_ms or 0)

    @app.get("/config")
    async def config() -> dict[str, Setting]:
        """Return the effective settings with their origins; secrets are masked."""
        return effective_settings(server.config)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Answer 200 while the process lives."""
        return Health()

    @app.get(
        "/readyz",
        response_model_exclude_none=True,
        responses={503: {"model": Readiness, "description": "The server drains, or its root does not exist"}},
    )
    async def readyz(response: Response) -> Readiness:
        """Answer 200 while requests are served, 503 while the server drains or its root is gone."""
        if server.draining:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return Readiness(status="draining")
        if problem := server.root_problem:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return Readiness(status="root-gone", reason=problem)
        origins = server.origin_statistics()
        failing = {} if origins is None else {each.prefix: each.problem for each in origins.mounts if each.problem}
        # What is in the disk cache is served: a failing store does not make the server unready.
        return Readiness(status="ready", failing_origins=failing or None)


def _latencies(server: "Server") -> Latencies:
    times = server.latency_counts(DASHBOARD_BOUNDS_US)
    transports = {name: [0] * (len(DASHBOARD_BOUNDS_US) + 1) for name in server.addresses}
    for each in times:
        # A transport that is no longer served has counts, but no address.
        sums = transports.setdefault(each.transport, [0] * (len(DASHBOARD_BOUNDS_US) + 1))
        for at, count in enumerate(each.latency.counts):
            sums[at] += count
    total = [sum(column) for column in zip(*transports.values(), strict=True)]
    return Latencies(bounds_us=list(DASHBOARD_BOUNDS_US), total=total, transports=transports)


def _add_writes(app: FastAPI, server: "Server") -> None:
    @app.post(
        "/concurrency",
        dependencies=BEARER,
        responses={
            **WRITE_RESPONSES,
            400: {"model": Problem, "description": "The content is no JSON"},
            409: {"model": Problem, "description": "That transport is not served, or the server drains"},
            422: {"model": Problem, "description": "No such transport or model"},
        },
    )
    async def concurrency(change: Change) -> Mapping[str, str]:  # type: ignore[valid-type]  # a model made above
        """Change the concurrency models of transports while they serve; return the current models."""
        wanted = cast("BaseModel", change).model_dump(exclude_none=True)
        try:
            server.set_concurrency(**wanted)
        except ValueError as error:
            raise HTTPException(HTTPStatus.CONFLICT, str(error)) from None
        except OSError as error:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        return server.statistics().concurrency_model

    @app.post(
        "/watch",
        responses={
            **WRITE_RESPONSES,
            400: {"model": Problem, "description": "The content is no JSON"},
            422: {"model": Problem, "description": "No time"},
        },
    )
    async def watch(wanted: Watch) -> Watching:
        """Record requests that take longer than a time, for the next five seconds; `GET /requests` returns them.

        Repeat the call within five seconds to miss no request. Clients on this machine need no token.
        """
        last = server.recorded_requests((1 << 63) - 1).last
        server.watch_requests(wanted.slower_than_ms / 1000, WATCH_TIME)
        return Watching(seconds=WATCH_TIME, last=last)

    @app.post("/drain", dependencies=BEARER, responses=WRITE_RESPONSES)
    async def drain() -> Draining:
        """Accept no more connections and finish pending requests. The process stays alive and reports not ready."""
        return Draining(finished=server.drain(timeout=0))

    @app.post(
        "/reload",
        dependencies=BEARER,
        responses={
            **WRITE_RESPONSES,
            409: {"model": Problem, "description": "The server has no settings file, or it drains"},
            422: {"model": Problem, "description": "The settings are invalid; nothing changed"},
        },
    )
    async def reload() -> Changes:
        """Read file and environment again. Apply the settings that can change; name those that need a restart.

        Opens the access log's path again, for log rotation.
        """
        try:
            found = server.reload()
        except ConfigError as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        except ValueError as error:
            raise HTTPException(HTTPStatus.CONFLICT, str(error)) from None
        except OSError as error:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        return Changes(changed=list(found.changed), needs_restart=list(found.needs_restart))


def _add_pages(app: FastAPI) -> None:
    dashboard, reference = Page.load("dashboard.html"), Page.load("reference.html")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(dashboard.content, headers=dashboard.headers)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference.content, headers=reference.headers)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        # The framework's own answer repeats the input, and fails if that is not valid JSON (NaN).
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"detail": f"{place}: {first['msg']}" if place else first["msg"]}, 422)

    @app.exception_handler(NotRunning)
    async def on_not_running(_: Request, error: NotRunning) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, LocalProtocolError):
            # The client violated HTTP during its answer: it gets 400, without a log line.
            return JSONResponse({"detail": "invalid HTTP request"}, HTTPStatus.BAD_REQUEST)
        LOG.error("the admin endpoint failed at %s: %r", request.url.path, error, exc_info=error)
        return JSONResponse({"detail": "internal error; the server's log has more"}, HTTPStatus.INTERNAL_SERVER_ERROR)
