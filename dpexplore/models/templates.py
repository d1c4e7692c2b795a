"""Chat templates rendered: in a process apart, with limits on time, memory and length. The only place that does."""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from dpexplore.errors import InputError

SECONDS = 5.0
"""Longest a template may take; those of real models take milliseconds."""
MAX_TEMPLATE_CHARACTERS = 500_000
MAX_CHARACTERS = 2_000_000
"""Longest text that a template may write."""
_WORKER = Path(__file__).with_name("template_worker.py")


class _Renderer:
    """The process that renders, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._gate = Lock()
        self._process: subprocess.Popen[str] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, str]:
        """The worker's answer. TimeoutError if it takes too long, BrokenPipeError if it died (out of memory, say)."""
        with self._gate:
            process = self._running()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                ready, _, _ = select.select([process.stdout], [], [], SECONDS)
                if not ready:
                    raise TimeoutError
                line = process.stdout.readline()
                if not line:
                    raise BrokenPipeError
                return json.loads(line)
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        with self._gate:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_renderer = _Renderer()
atexit.register(_renderer.close)


def render(name: str, template: str, context: dict[str, Any]) -> str:
    """What a template writes for a context (`messages`, `add_generation_prompt`, special tokens).

    `name` is the model's, for errors. InputError in one sentence if the template cannot be read, raises, takes more
    than a few seconds, or writes or keeps too much.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InputError(
            f"The chat template of {name} has {len(template):,} characters, more than {MAX_TEMPLATE_CHARACTERS:,}."
        )
    request = {"template": template, "context": context, "max_characters": MAX_CHARACTERS}
    try:
        answer = _renderer.answer(request)
    except TimeoutError:
        raise InputError(
            f"The chat template of {name} takes more than {SECONDS:.0f} seconds; leave chat off."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"The chat template of {name} ended the process that renders it; leave chat off.") from error
    if "text" not in answer:
        raise InputError(f"The chat template of {name} cannot be used: {answer['error']}; leave chat off.")
    return answer["text"]
