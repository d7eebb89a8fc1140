"""The routes of a service: HTTP in and out, and nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from kshot.errors import EpisodeError, KshotError, UnknownNameError, UserError
from kshot.serving.access import Keys
from kshot.serving.galleries import Example, plain_class_name
from kshot.serving.gate import Gate, RequestMetrics, send_problem
from kshot.serving.payload import BODY_SCHEMA, read_items, read_json, read_support_and_items
from kshot.serving.problems import MEDIA_TYPE, ProblemError
from kshot.serving.service import Answer, Answered, Service
from kshot.serving.settings import Limits

_LOGGER = logging.getLogger("kshot.service")
_PAGE = Path(__file__).parent / "page"
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp"}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong: what was found, and what is needed (RFC 9457)",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "found": {"type": "string"},
                        "needed": {"type": "string"},
                    },
                }
            }
        },
    }
}
_BODY = {"requestBody": BODY_SCHEMA}

Gallery = Annotated[str, InPath(description="The name of a gallery: letters, digits, - and _", max_length=64)]
ClassName = Annotated[str, InPath(description="The name of a class", max_length=100)]
Top = Annotated[int, Query(description="How many classes to give probabilities of, the likeliest first", ge=1, le=1000)]


def build_app(service: Service, keys: Keys, limits: Limits, hosts: frozenset[bytes]) -> Gate:
    """The whole application. Its lifespan watches the model and writes the log."""
    registry = CollectorRegistry()
    app: FastAPI = FastAPIOffline(
        title="kshot",
        version=version_of("kshot"),
        summary="Classes from a few examples each, and answers from the next second on",
        docs_url="/docs",
        redoc_url=None,
        lifespan=lambda _: _running(service),
        responses=_RESPONSES,
    )
    _add_errors(app)
    _add_answers(app, service)  # first: routes are tried in their order
    _add_galleries(app, service)
    _add_health(app, service, registry)
    app.mount("/", StaticFiles(directory=_PAGE, html=True), name="page")
    metrics = RequestMetrics(registry)
    return Gate(app=app, keys=keys, limits=limits, metrics=metrics, check_room=service.slot.check_room, hosts=hosts)


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(service.watch())]
    if service.log is not None:
        tasks.append(asyncio.create_task(service.log.keep_writing()))
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if service.log is not None:
        await asyncio.to_thread(service.log.write)
    service.slot.close()


def _add_answers(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.items

    @app.post("/v1/galleries/{gallery}/classify", tags=["answers"], openapi_extra=_BODY)
    async def classify(request: Request, gallery: Gallery, top: Top = 5) -> Response:
        """The class of each item, how likely it is, the nearest example, and whether it is likely of none of them."""
        contents = await read_items(request, most)
        return _json(_answered(await service.classify(gallery, contents), top, gallery))

    @app.post("/v1/classify", tags=["answers"])
    async def classify_once(request: Request, top: Top = 5) -> Response:
        """The same with the examples in the request: support: {CLASS: [items]} and items, or files support/CLASS and
        items. Nothing of it is kept."""
        support, contents = await read_support_and_items(request, most)
        return _json(_answered(await service.classify_once(support, contents), top))

    @app.post("/v1/feedback", tags=["answers"], status_code=202)
    async def feedback(request: Request) -> Response:
        """The right class of an earlier answer: {"id": ..., "class": ...}."""
        answer_id, class_name = await read_json(request, "id", "class")
        if service.log is None:
            raise ProblemError(
                409, "nothing is kept", found="a service that keeps no log", needed="log: {keep: true} in its settings"
            )
        if not (len(answer_id) == 32 and answer_id.isalnum()):
            raise ProblemError(422, "no such answer", found=f"id {answer_id[:40]!r}", needed="the id of an answer")
        class_name = plain_class_name(class_name)
        service.log.corrected(answer_id, class_name)
        return _json({"id": answer_id, "class": class_name}, 202)


def _add_galleries(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.items
    tags: list[Any] = ["galleries"]

    @app.get("/v1/galleries", tags=tags)
    async def galleries() -> Response:
        """All galleries, by name."""
        return _json({"galleries": await service.galleries()})

    @app.put("/v1/galleries/{gallery}", tags=tags)
    async def create(gallery: Gallery) -> Response:
        """Make a gallery. One that is there stays as it is. Putting an example makes it too."""
        new = await service.create(gallery)
        return _json({"gallery": gallery}, 201 if new else 200)

    @app.get("/v1/galleries/{gallery}", tags=tags)
    async def gallery_of(gallery: Gallery) -> Response:
        """The classes of a gallery with their examples."""
        contents = await service.contents(gallery)
        classes = [
            {"class": name, "examples": [_example(gallery, example) for example in examples]}
            for name, examples in contents.classes.items()
        ]
        return _json({"gallery": gallery, "classes": classes})

    @app.delete("/v1/galleries/{gallery}", tags=tags, status_code=204)
    async def delete(gallery: Gallery) -> Response:
        """Delete a gallery and all its examples."""
        await service.delete(gallery)
        return Response(status_code=204)

    @app.put("/v1/galleries/{gallery}/classes/{class_name}/examples", tags=tags, status_code=201, openapi_extra=_BODY)
    async def add(request: Request, gallery: Gallery, class_name: ClassName) -> Response:
        """Add examples to a class; gallery and class are made where they are not there. They are stored when the answer
        comes. The same picture again changes nothing."""
        examples = await service.add(gallery, class_name, await read_items(request, most))
        shown = [_example(gallery, example) for example in examples]
        return _json({"gallery": gallery, "class": examples[0].class_name, "examples": shown}, 201)

    @app.get("/v1/galleries/{gallery}/classes/{class_name}/examples/{example_id}", tags=tags)
    async def example(gallery: Gallery, class_name: ClassName, example_id: str) -> Response:
        """The picture of an example, as it was posted."""
        found, content = await service.picture(gallery, class_name, example_id)
        return Response(
            content,
            media_type=_KINDS.get(found.end, "application/octet-stream"),
            headers={"Cache-Control": "private, max-age=31536000, immutable"},
        )

    @app.delete("/v1/galleries/{gallery}/classes/{class_name}/examples/{example_id}", tags=tags, status_code=204)
    async def remove_example(gallery: Gallery, class_name: ClassName, example_id: str) -> Response:
        """Delete an example."""
        await service.remove_example(gallery, class_name, example_id)
        return Response(status_code=204)

    @app.delete("/v1/galleries/{gallery}/classes/{class_name}", tags=tags, status_code=204)
    async def remove_class(gallery: Gallery, class_name: ClassName) -> Response:
        """Delete a class and its examples."""
        await service.remove_class(gallery, class_name)
        return Response(status_code=204)

    @app.post("/v1/galleries/{gallery}/classes/{class_name}/rename", tags=tags)
    async def rename(request: Request, gallery: Gallery, class_name: ClassName) -> Response:
        """Give a class another name: {"to": NAME}."""
        (after,) = await read_json(request, "to")
        await service.rename_class(gallery, class_name, after)
        return _json({"gallery": gallery, "class": after})

    @app.get("/v1/galleries/{gallery}/quality", tags=tags)
    async def quality(gallery: Gallery) -> Response:
        """How often an example is known by the others, which classes are confused, and whether the model before this
        one knew them better."""
        found = await service.leave_one_out(gallery)
        change = await service.change(gallery)
        interval = found.interval
        return _json(
            {
                "gallery": gallery,
                "model": found.model,
                "examples": len(found.told),
                "accuracy": found.accuracy,
                "interval": None if interval is None else list(interval),
                "confused": [{"class": one, "told": told, "times": n} for one, told, n in found.confused[:20]],
                "change": None
                if change is None
                else {
                    "before": change.before,
                    "examples": change.n,
                    "accuracy_before": change.accuracy_before,
                    "accuracy_after": change.accuracy_after,
                    "verdict": change.verdict,
                },
            }
        )


def _add_health(app: FastAPI, service: Service, registry: CollectorRegistry) -> None:
    for name, words, value in (
        ("kshot_waiting", "Requests that wait for inference", lambda: service.slot.n_waiting),
        ("kshot_adapted_bytes", "Memory of adapted galleries", lambda: service.adapted.n_bytes),
        ("kshot_log_dropped", "Rows of the log that were lost", lambda: service.log.n_dropped if service.log else 0),
        ("kshot_model_behind", "1 where another version is wanted than answers", lambda: int(bool(service.trouble))),
    ):
        Gauge(name, words, registry=registry).set_function(value)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @app.get("/readyz", tags=["service"])
    async def readyz() -> Response:
        """Which model answers. `trouble` says why it is not the version that is wanted."""
        return _json({"status": "ready", "model": service.model.name, "trouble": service.trouble})

    @app.get("/v1/model", tags=["service"])
    async def model() -> Response:
        """The model that answers, and what it takes."""
        item = service.item
        return _json({"model": service.model.name, "version": service.model.version, "takes": str(item)})

    @app.get("/metrics", tags=["service"])
    async def metrics() -> Response:
        """For Prometheus: of this process."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    async def as_problem(request: Request, error: Exception) -> Response:
        problem = _problem(error)
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await send_problem(problem, keep)
        response = Response(sent[1]["body"], problem.status, media_type=MEDIA_TYPE)
        response.headers.update(problem.headers)
        return response

    for kind in (ProblemError, KshotError, HTTPException, RequestValidationError, OSError, Exception):
        app.add_exception_handler(kind, as_problem)


def _problem(error: Exception) -> ProblemError:
    match error:
        case ProblemError():
            return error
        case UnknownNameError():
            return ProblemError(404, "not there", detail=str(error))
        case EpisodeError():
            return ProblemError(409, "the gallery cannot be asked", detail=str(error))
        case UserError():
            return ProblemError(422, "an item or a name cannot be used", detail=str(error))
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return ProblemError(
                422, "a value cannot be used", found=f"{where} {first['input']!r:.80}", needed=first["msg"]
            )
        case HTTPException():
            return ProblemError(error.status_code, "", detail=str(error.detail), headers=dict(error.headers or {}))
        case OSError():
            _LOGGER.error("storage fails: %s", error)
            return ProblemError(
                503,
                "the storage does not answer",
                found="a storage that fails",
                needed="one that works; ask again",
                headers={"Retry-After": "5"},
            )
        case _:
            _LOGGER.error("a request fails", exc_info=error)
            return ProblemError(500, "a fault of the service", detail="the log of the service has the reason")


def _answered(answered: Answered, top: int, gallery: str = "") -> dict[str, Any]:
    named = {"gallery": gallery} if gallery else {}
    answers = [_answer(answer, top, gallery) for answer in answered.answers]
    return {"model": answered.model.name, **named, "answers": answers}


def _answer(answer: Answer, top: int, gallery: str) -> dict[str, Any]:
    best = sorted(answer.probabilities.items(), key=lambda pair: (-pair[1], pair[0]))[:top]
    near = answer.nearest
    shown = None
    if near is not None:
        shown = {"class": near.class_name, "id": near.id}
    return {
        "id": answer.id,
        "class": answer.class_name,
        "probability": answer.probability,
        "unknown": answer.unknown,
        "known": answer.known,
        "threshold": answer.threshold,
        "nearest": shown,
        "probabilities": [{"class": name, "probability": value} for name, value in best],
    }


def _example(gallery: str, example: Example) -> dict[str, Any]:
    return {"id": example.id, "class": example.class_name}


def _json(content: Any, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")
