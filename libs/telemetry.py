"""What operators see: JSON log lines, and traces that follow a request through the log into the services."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanContext, SpanKind, TraceFlags

from libs.config import Refused, Service

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_tracer = trace.get_tracer("trainyard")


def start(service: str, settings: Service) -> None:
    """Once per process, before anything else speaks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    _ask_less_of_records()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)),
        resource=Resource.create({"service.name": f"trainyard-{service}"}),
        shutdown_on_exit=False,
    )
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        provider.add_span_processor(BatchSpanProcessor(_exporter()))
    trace.set_tracer_provider(provider)


def stop() -> None:
    """The last traces leave before the process does."""
    if isinstance(provider := trace.get_tracer_provider(), TracerProvider):
        provider.shutdown()


@contextmanager
def span(name: str, *, kind: SpanKind = SpanKind.INTERNAL, parent: str = "", **attributes: str | int) -> Iterator[Span]:
    """A span below `parent` (a W3C traceparent), or below the current one. Names are templates, never ids."""
    context = trace.set_span_in_context(trace.NonRecordingSpan(remote)) if (remote := _remote(parent)) else None
    current = _tracer.start_span(name, context=context, kind=kind, attributes=attributes)
    with trace.use_span(current, end_on_exit=True):
        yield current


def traceparent() -> str:
    """Where the work at hand belongs, to be carried by what it causes."""
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else ""


class JsonLines(logging.Formatter):
    """One JSON object a line; what is passed as `extra` becomes fields of its own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[0]:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


def _ask_less_of_records() -> None:
    """Who called from where, in which thread and process: no line says it, and finding out cost as much as writing the line."""
    logging._srcfile = None  # pyright: ignore[reportAttributeAccessIssue]  # as the logging HOWTO has it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _remote(parent: str) -> SpanContext | None:
    """Foreign text: anything that is not a traceparent is no parent."""
    parts = parent.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    try:
        context = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=TraceFlags(int(parts[3], 16)))
    except ValueError:
        return None
    return context if context.is_valid else None


def _exporter() -> Any:
    """Optional, and large: it comes with the extra `otlp`."""
    try:
        return import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    except ImportError as error:
        raise Refused("OTEL_EXPORTER_OTLP_ENDPOINT is set, but the exporter isn't installed: pip install 'trainyard[otlp]'") from error
