"""The API's own pages: /openapi.json, /asyncapi.json, and two readers of it that need nothing from any other host."""

from functools import cache
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import File
from litestar.types import ControllerRouterHandler

from libs.events import asyncapi
from libs.events.log import Unavailable
from services.gateway.api.families import FAMILIES, Family, family
from services.gateway.api.limits import refusal
from services.gateway.api.problems import Field, Problem, media_type, problem
from services.gateway.domain.errors import LogFull
from services.gateway.limits import Standing

ALONE = ("/",)
"""What is answered without any other part of the platform."""

STATIC = Path(__file__).parents[1] / "static"
SWAGGER = "/static/vendor/swagger-ui-5.35.0"
REDOC = "/static/vendor/redoc-2.5.4"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
AGAIN = "no-cache"
FOREVER = "public, max-age=31536000, immutable"  # a vendored folder's name has the version
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="{icon}">
{styles}
</head>
<body>
<div id="page"></div>
{scripts}
</body>
</html>
"""


def openapi(app: Litestar) -> dict[str, Any]:
    """The document of all operations that `app` has, with refusals in the form of each path's family."""
    document = app.openapi_schema.to_schema()
    document["paths"] = {path + "/" if _ends_with_slash(item) else path: item for path, item in document["paths"].items()}
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": "An access token or an API key"}}
    document["components"]["responses"] = {
        f"{name}_{family.name}": answer
        for family in FAMILIES
        for name, answer in (("TooManyRequests", _too_many(family)), ("Unavailable", _down(family)), ("Full", _full(family)))
    }
    document["security"] = [{"token": []}]
    for path, item in document["paths"].items():
        refusal = _refusal(path)
        known = {name: {"$ref": f"#/components/responses/{name}_{family(path, path).name}"} for name in ("TooManyRequests", "Unavailable", "Full")}
        for method, operation in item.items():
            operation["responses"].pop("400", None)  # the framework's form, which no family speaks
            operation["responses"].get("204", {}).pop("content", None)
            operation["responses"]["4XX"] = refusal
            if "platform" not in operation.get("tags", []):
                operation["responses"]["429"] = known["TooManyRequests"]
            if path not in ALONE:
                operation["responses"]["503"] = known["Unavailable"]
            if method != "get":
                operation["responses"]["507"] = known["Full"]
    return document


def _ends_with_slash(item: dict[str, Any]) -> bool:
    """The router doesn't care, but to datagen's clients it is part of the path."""
    return any(tag.startswith("datagen") for operation in item.values() for tag in operation.get("tags", []))


def _refusal(path: str) -> dict[str, Any]:
    """With an example as the family's own code words it."""
    example = Problem(status=422, code="validation_error", message="name: This field is required", fields=[Field("name", "This field is required")])
    return {"description": "Refused: nothing was changed", "content": _dressed(family(path, path), example)}


def _too_many(family: Family) -> dict[str, Any]:
    """docs/limits.md has the figures."""
    standing = Standing(allowed=False, limit=60, remaining=0, reset=1_609_459_200, retry_after=37)
    names = {
        "X-RateLimit-Limit": "Requests within a window",
        "X-RateLimit-Remaining": "Left of them",
        "X-RateLimit-Reset": "When the window ends: seconds since 1970",
    }
    described = {**names, "Retry-After": "Seconds until then"}
    return {
        "description": "Too many requests; the first three headers are in every answer",
        "headers": {name: {"description": text, "schema": {"type": "integer"}} for name, text in described.items()},
        "content": _dressed(family, refusal(standing).problem),
    }


def _down(family: Family) -> dict[str, Any]:
    return {
        "description": "A part of the platform does not answer, and is named: try again in a moment. Whether something was changed is not known",
        "headers": {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}},
        "content": _dressed(family, problem(Unavailable())),
    }


def _full(family: Family) -> dict[str, Any]:
    return {"description": "There is no room left: nothing was changed", "content": _dressed(family, problem(LogFull()))}


def _dressed(family: Family, problem: Problem) -> dict[str, Any]:
    _, body = family.dress(problem)
    shown = body | ({"timestamp": "2026-01-05T09:30:00.125Z"} if "timestamp" in body else {})  # the same however often the document is written
    return {media_type(body): {"schema": {"type": "object"}, "example": shown}}


@get("/openapi.json", include_in_schema=False)
async def document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Rendered once: it is the same as long as the process lives."""
    state = request.app.state
    if "openapi" not in state:
        state["openapi"] = msgspec.json.encode(openapi(request.app))
    return Response(state["openapi"], media_type=MediaType.JSON, headers={**HEADERS, "cache-control": AGAIN})


@get("/asyncapi.json", include_in_schema=False)
async def events_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """What the bus tells, for those who listen."""
    state = request.app.state
    if "asyncapi" not in state:
        config = request.app.openapi_config
        state["asyncapi"] = msgspec.json.encode(asyncapi.document(version=config.version if config else ""))
    return Response(state["asyncapi"], media_type=MediaType.JSON, headers={**HEADERS, "cache-control": AGAIN})


@get("/docs", include_in_schema=False)
async def swagger() -> Response[str]:
    return _page("trainyard API", styles=[f"{SWAGGER}/swagger-ui.css"], scripts=[f"{SWAGGER}/swagger-ui-bundle.js", "/static/docs/swagger.js"])


@get("/redoc", include_in_schema=False)
async def redoc() -> Response[str]:
    return _page("trainyard API reference", styles=[], scripts=[f"{REDOC}/redoc.standalone.js", "/static/docs/redoc.js"])


@get("/static/{path:path}", include_in_schema=False)
async def static(path: FromPath[str]) -> File:
    """Only what was there when the process started is served, by its exact name: no path leads elsewhere."""
    file = _files().get(path)
    if file is None:
        raise NotFoundException
    return File(
        file,
        filename=file.name,
        media_type=guess_type(file.name)[0] or "text/plain",
        content_disposition_type="inline",
        headers={**HEADERS, "cache-control": FOREVER if path.startswith("/vendor/") else AGAIN},
    )


handlers: list[ControllerRouterHandler] = [document, events_document, swagger, redoc, static]


@cache
def _files() -> dict[str, Path]:
    return {f"/{file.relative_to(STATIC).as_posix()}": file for file in STATIC.rglob("*") if file.is_file()}


def _page(title: str, *, styles: list[str], scripts: list[str]) -> Response[str]:
    """No script in the page itself: the policy forbids it."""
    body = PAGE.format(
        title=title,
        icon=f"{SWAGGER}/favicon-32x32.png",
        styles="\n".join(f'<link rel="stylesheet" href="{style}">' for style in ["/static/docs/page.css", *styles]),
        scripts="\n".join(f'<script src="{script}"></script>' for script in scripts),
    )
    return Response(body, media_type=MediaType.HTML, headers={**HEADERS, "cache-control": AGAIN})
