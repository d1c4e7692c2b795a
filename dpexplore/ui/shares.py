"""What one address may hold of the server's threads and of the questions that wait for an answer.

Beyond its threads an address waits for its own questions and for nobody else's; beyond its questions it is refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from typing import Any

import gradio as gr
from anyio import CapacityLimiter

from dpexplore.ui.visitor import address_of

THREADS = 200
QUESTIONS = 1000
"""Questions that Gradio has begun to answer, whether they have a thread or wait for one."""

_address: ContextVar[str] = ContextVar("address", default="")


class SharedThreads:
    """Replaces anyio's limiter, which serves requests first come, first served."""

    def __init__(self, threads: int, of_address: int) -> None:
        self._all, self._of_address = CapacityLimiter(threads), of_address
        self._shares: dict[str, asyncio.Semaphore] = {}
        self._asking: Counter[str] = Counter()

    async def __aenter__(self) -> None:
        address = _address.get()
        self._asking[address] += 1
        share = self._shares.setdefault(address, asyncio.Semaphore(self._of_address))
        try:
            await share.acquire()
            try:
                await self._all.acquire()
            except BaseException:
                share.release()
                raise
        except BaseException:
            self._leave(address)
            raise

    async def __aexit__(self, *_: object) -> None:
        address = _address.get()
        self._all.release()
        self._shares[address].release()
        self._leave(address)

    def _leave(self, address: str) -> None:
        self._asking[address] -= 1
        if not self._asking[address]:
            del self._asking[address], self._shares[address]


def share_questions(demo: gr.Blocks, most: int, threads: int = THREADS) -> None:
    """Let the page, before it is launched, take `most` questions of an address at a time, on half of the threads.

    `most` counts at most half of all questions.
    """
    queue, answer = demo._queue, demo.process_api
    push, most = queue.push, min(most, QUESTIONS // 2)

    async def push_for(body: Any, request: Any, username: str | None) -> tuple[Any, ...]:
        address = address_of(request)
        asked = sum(address_of(event.request) == address for event in list(queue.event_ids_to_events.values()))
        if asked >= most:
            return False, "Too many questions from here wait for an answer; try again in a moment.", "queue_full"
        return await push(body, request, username)

    async def answer_for(*arguments: Any, request: Any = None, **named: Any) -> dict[str, Any]:
        asker = request[0] if isinstance(request, list) and request else request
        token = _address.set(address_of(asker) if isinstance(asker, gr.Request) else "")
        try:
            return await answer(*arguments, request=request, **named)
        finally:
            _address.reset(token)

    def make_limiter() -> None:
        demo.limiter = SharedThreads(threads, threads // 2)  # type: ignore[assignment]

    queue.push, demo.process_api, demo.create_limiter = push_for, answer_for, make_limiter  # type: ignore[method-assign]
