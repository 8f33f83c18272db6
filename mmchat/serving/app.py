"""The routes of the server. FastAPI is imported when it is built, because it belongs to the extra `serve`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from mmchat import __version__
from mmchat.extras import require
from mmchat.serving.chat import ChatResponse, start_chat
from mmchat.serving.completions import CompletionResponse, start_completion
from mmchat.serving.errors import ApiError, invalid, path_of
from mmchat.serving.gate import VISIT, Gate, Visit
from mmchat.serving.responses import Response
from mmchat.serving.schemas import (
    WHY_REFUSED,
    ChatRequest,
    CompletionRequest,
    ErrorBody,
    ModelCard,
    ModelList,
    Status,
)
from mmchat.serving.service import Service, not_ready
from mmchat.serving.work import Work

CLIENT_GONE = 499
"""Status, in metrics only, of a request whose caller left (as nginx has it)."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be answered as it is.",
        401: "No valid API key.",
        403: "Not a name of this machine, and the server has no keys.",
        404: "No such model.",
        408: "The body took too long.",
        413: "The body is too large.",
        415: "The body is not application/json.",
        429: "Too many requests, by rate or in flight.",
        503: "Loading, stopping or failed.",
    }.items()
}


def build_app(service: Service, started: Callable[[], None] = lambda: None, failed: Callable[[], None] = lambda: None):
    """The ASGI application.

    Args:
        service: The served model. The application starts it.
        started: Called in the event loop when the application starts.
        failed: Called in the event loop if the model cannot be loaded.

    Returns:
        A `fastapi.FastAPI`.

    Raises:
        UserError: FastAPI is not installed.
    """
    require("fastapi")
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started()
        service.start(failed)
        sampler = asyncio.create_task(_sample(service))
        yield
        sampler.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="mmchat",
        version=__version__,
        description="The part of OpenAI's API that an assistant of mmchat answers.",
        docs_url=None,  # it would load scripts from another server
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    _add_errors(app, service)
    _add_status(app, service)
    _add_models(app, service)
    _add_answers(app, service)
    app.add_middleware(Gate, service=service)
    return app


async def _sample(service: Service) -> None:
    """Take the engine's count of tokens once a second."""
    while True:
        service.metrics.throughput.sample(service.engine_state().decoded)
        await asyncio.sleep(1)


def _add_errors(app: Any, service: Service) -> None:
    """Every error in OpenAI's shape."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(error: ApiError) -> JSONResponse:
        service.metrics.refused.labels(error.code).inc()
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(refusal_of(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> JSONResponse:
        response = answer(ApiError(error.status_code, str(error.detail), "invalid_request"))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def of_defects(request: Request, error: Exception) -> JSONResponse:
        response = answer(ApiError(500, "the server failed to answer this request; its log says why", "internal_error"))
        response.headers["Connection"] = "close"  # which uvicorn does after a defect, but does not say
        return response


def refusal_of(problem: dict[str, Any]) -> ApiError:
    """The error for one of pydantic's problems with a request.

    Args:
        problem: `type`, `loc` and `msg` are used. What was sent is not repeated.
    """
    location = tuple(one for one in problem["loc"][1:] if not str(one).startswith("<"))
    path = path_of(location)
    if problem["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json")
    if not path:
        return invalid("the body must be a JSON object", code="invalid_json")
    reason = next((WHY_REFUSED[str(one)] for one in reversed(location) if str(one) in WHY_REFUSED), None)
    if reason is not None:
        return invalid(f"{path} is refused: {reason}", path, "unsupported_parameter")
    if problem["type"] == "extra_forbidden":
        return invalid(f"{path} is not a parameter that this server knows", path, "unknown_parameter")
    message = problem["msg"].removeprefix("Value error, ")
    return invalid(f"{path}: {message}", path)


def _add_status(app: Any, service: Service) -> None:
    from fastapi import Response
    from fastapi.responses import JSONResponse

    @app.get("/health", response_model=Status, responses={500: {"model": ErrorBody, "description": "Restart it."}})
    async def health() -> Any:
        """Whether the process is up."""
        if service.state == "failed":
            return JSONResponse(ApiError(500, "the model has failed", "server_failed").body(), 500)
        return {"status": "ok"}

    @app.get("/ready", response_model=Status, responses={503: REFUSALS[503]})
    async def ready() -> Any:
        """Whether requests are answered: the model has made a first token, and the server is not stopping."""
        if service.state != "ready":
            raise not_ready(service.state)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={401: REFUSALS[401]})
    async def metrics() -> Response:
        """Prometheus' text format."""
        text = service.metrics.text(service.engine_state(), service.queued, service.running, service.bodies.held)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: Any, service: Service) -> None:
    card = ModelCard(id=service.settings.name, created=service.created)

    @app.get("/v1/models", responses={401: REFUSALS[401]})
    async def models() -> ModelList:
        """The one model of this server."""
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}", responses={status: REFUSALS[status] for status in (401, 404)})
    async def model(name: str) -> ModelCard:
        """The model by its name."""
        service.check_model(name)
        return card


def _add_answers(app: Any, service: Service) -> None:
    """The routes that ask the model."""
    from fastapi import Request
    from fastapi import Response as HttpResponse
    from fastapi.responses import JSONResponse, StreamingResponse

    def described(kind: type[Response]) -> dict[str, Any]:
        data = {"type": "string", "description": f"A {kind.event} as JSON; [DONE] at the end"}
        # Before 3.2, OpenAPI describes one event of a stream here.
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        events = {"text/event-stream": {"schema": event}}
        ok = {"description": "The answer, or with stream its events.", "content": events}
        return {"response_model": kind.body, "responses": {200: ok, **REFUSALS}}

    async def answer(request: Request, start: Callable[[float], Awaitable[Work]], response: Response) -> HttpResponse:
        """The answer in one piece, or as a stream that has its first event: errors until then have their own status."""
        visit: Visit = request.scope[VISIT]

        async def first_answer() -> HttpResponse:
            visit.work = await start(visit.since)
            if not response.streams:
                return JSONResponse(await response.whole(visit.work.events()))
            events = response.stream(await visit.work.after_first())
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

        answered = await visit.unless_gone(first_answer())
        if answered is None:
            service.metrics.disconnected.inc()
            return HttpResponse(status_code=CLIENT_GONE)
        return answered

    @app.post("/v1/chat/completions", **described(ChatResponse))
    async def chat_completions(body: ChatRequest, request: Request) -> HttpResponse:
        """Answer a conversation with images."""
        response = ChatResponse(body, service.settings.name)
        return await answer(request, lambda since: start_chat(service, body, since), response)

    @app.post("/v1/completions", **described(CompletionResponse))
    async def completions(body: CompletionRequest, request: Request) -> HttpResponse:
        """Continue plain texts, without the model's conversation template and without images."""
        response = CompletionResponse(body, service.settings.name)
        return await answer(request, lambda since: start_completion(service, body, since), response)
