"""Renders chat templates in a process of its own: one JSON request a line in, one JSON answer a line out.

Templates come with models and are programs of strangers. Jinja's sandbox keeps them from Python's inside; this process
keeps their memory within bounds, and its parent ends it when a template takes too long. It imports neither
torch nor transformers, so it starts in a tenth of a second. The environment is the one that transformers gives.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_BYTES = 512 * 2**20
"""Memory of this process."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its content is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(value: object, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _answer(environment: ImmutableSandboxedEnvironment, request: dict[str, Any]) -> dict[str, str]:
    try:
        template = environment.from_string(request["template"])
    except Exception as error:
        return {"error": f"it cannot be read ({_said(error)})"}
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(**request["context"]):
            parts.append(part)
            length += len(part)
            if length > request["max_characters"]:
                return {"error": f"it writes more than {request['max_characters']:,} characters"}
    except jinja2.TemplateError as error:
        return {"error": f"it refuses this conversation ({_said(error)})"}
    except Exception as error:  # whatever a stranger's program raises
        return {"error": f"it fails ({_said(error)})"}
    return {"text": "".join(parts)}


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")


def main() -> None:
    """Render the chat templates that come as lines of JSON, within bounds on memory."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows; a smaller limit may be set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    environment = _environment()
    for line in sys.stdin:
        try:
            answer = json.dumps(_answer(environment, json.loads(line)))
        except Exception as error:  # the text may hold what JSON cannot, or be too large
            answer = json.dumps({"error": f"it fails ({_said(error)})"})
        print(answer, flush=True)


if __name__ == "__main__":
    main()
