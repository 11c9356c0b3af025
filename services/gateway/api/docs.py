"""The API's own pages: /openapi.json, and two readers of it that need nothing from any other host."""

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

from services.gateway.api.families import family
from services.gateway.api.problems import Field, Problem

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
    document["security"] = [{"token": []}]
    for path, item in document["paths"].items():
        refusal = _refusal(path)
        for operation in item.values():
            operation["responses"].pop("400", None)  # the framework's form, which no family speaks
            operation["responses"]["4XX"] = refusal
    return document


def _ends_with_slash(item: dict[str, Any]) -> bool:
    """The router doesn't care, but to datagen's clients it is part of the path."""
    return any(tag.startswith("datagen") for operation in item.values() for tag in operation.get("tags", []))


def _refusal(path: str) -> dict[str, Any]:
    """With an example as the family's own code words it."""
    example = Problem(status=422, code="validation_error", message="name: This field is required", fields=[Field("name", "This field is required")])
    _, body = family(path, path).dress(example)
    return {"description": "Refused: nothing was changed", "content": {"application/json": {"schema": {"type": "object"}, "example": body}}}


@get("/openapi.json", include_in_schema=False)
async def document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Rendered once: it is the same as long as the process lives."""
    state = request.app.state
    if "openapi" not in state:
        state["openapi"] = msgspec.json.encode(openapi(request.app))
    return Response(state["openapi"], media_type=MediaType.JSON, headers={**HEADERS, "cache-control": AGAIN})


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


handlers: list[ControllerRouterHandler] = [document, swagger, redoc, static]


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
