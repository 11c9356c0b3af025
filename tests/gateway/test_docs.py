"""The API's own pages work without any other host, and serve nothing but what they are made of."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from services.gateway.api import docs


@get("/things")
async def things() -> list[str]:
    """All things."""
    return []


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    config = OpenAPIConfig(title="trainyard", version="1", path="/schema", render_plugins=[JsonRenderPlugin()])
    app: Any = Litestar([things, *docs.handlers], openapi_config=config)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_the_document_lists_the_operations_but_not_its_own_pages(client):
    answer = await client.get("/openapi.json")

    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()["paths"]) == ["/things"]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_a_page_needs_only_its_own_host_and_no_script_within(client, page):
    answer = await client.get(page)

    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "//" not in answer.text
    assert re.findall(r"<script[^>]*>([^<]*)</script>", answer.text) == ["", ""]
    for needed in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert (await client.get(needed)).status_code == 200


async def test_only_what_has_its_version_in_its_name_is_kept_forever(client):
    vendored, own = await client.get(f"{docs.REDOC}/redoc.standalone.js"), await client.get("/static/docs/redoc.js")

    assert "immutable" in vendored.headers["cache-control"]
    assert own.headers["cache-control"] == "no-cache"
    assert vendored.headers["x-content-type-options"] == own.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["vendor/..%2f..%2f__init__.py", "docs/%2e%2e/%2e%2e/edge.py", "%2fetc/passwd", "docs/..%5c..%5cedge.py", "docs/x%00.js", "docs", ""]
)
async def test_no_path_leads_elsewhere(client, path):
    assert (await client.get(f"/static/{path}")).status_code == 404
