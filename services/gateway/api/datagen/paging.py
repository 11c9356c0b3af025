"""Lists as Django REST framework pages them: bare without paging parameters, else a page with links to its neighbours."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar.params import QueryParameter

from services.gateway.api.requests import AnyRequest

MOST = 1000
USUAL = 100

Page = Annotated[int | None, QueryParameter(name="page", ge=1, le=1_000_000)]
Limit = Annotated[int | None, QueryParameter(name="limit", ge=1, le=MOST)]
Offset = Annotated[int | None, QueryParameter(name="offset", ge=0, le=10_000_000)]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    limit: int
    offset: int
    bare: bool = False


def window(*, page: int | None, limit: int | None, offset: int | None) -> Window:
    if page is None and limit is None and offset is None:
        return Window(limit=MOST, offset=0, bare=True)
    size = limit or USUAL
    return Window(limit=size, offset=offset if offset is not None else ((page or 1) - 1) * size)


def listed(request: AnyRequest, items: Sequence[Any], total: int, wanted: Window) -> Any:
    if wanted.bare:
        return list(items)
    ahead, back = wanted.offset + wanted.limit, max(0, wanted.offset - wanted.limit)
    return {
        "count": total,
        "next": _link(request, wanted.limit, ahead) if ahead < total else None,
        "previous": _link(request, wanted.limit, back) if wanted.offset > 0 else None,
        "results": list(items),
    }


def _link(request: AnyRequest, limit: int, offset: int) -> str:
    return f"{request.base_url}".rstrip("/") + f"{request.url.path.rstrip('/')}/?{urlencode({'limit': limit, 'offset': offset})}"
