"""Threads and questions are shared between addresses: one that holds all of its own waits alone, or is refused."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.data_classes import PredictBodyInternal

from dpexplore.ui.shares import SharedThreads, share_questions
from tests.served import GRADIO_LEAVES_OPEN

pytestmark = GRADIO_LEAVES_OPEN


def request_from(address: str) -> gr.Request:
    return gr.Request(SimpleNamespace(client=SimpleNamespace(host=address)))  # type: ignore[arg-type]


@pytest.mark.parametrize("generator", [False, True])
def test_an_address_holds_its_share_of_the_threads_and_no_other_waits_for_it(generator: bool) -> None:
    gate, answered = threading.Event(), []

    def wait(name: str) -> str:
        gate.wait(30)
        answered.append(name)
        return name

    def steps(name: str) -> Iterator[str]:
        yield wait(name)

    with gr.Blocks() as demo:
        text = gr.Textbox()
        handler = steps if generator else wait
        text.change(handler, text, text)
        text.submit(lambda name: name, text, text)
    share_questions(demo, most=10, threads=4)
    demo.create_limiter()
    assert isinstance(demo.limiter, SharedThreads)

    async def ask(number: int, address: str) -> str:
        asked = await demo.process_api(demo.fns[number], ["x"], request=request_from(address))
        return asked["data"][0]

    async def both() -> None:
        held = [asyncio.create_task(ask(0, "greedy")) for _ in range(6)]
        held[0].cancel()  # before it has a thread
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(ask(1, "other"), 20) == "x"
        assert not answered
        gate.set()
        for task in held[1:]:
            assert await asyncio.wait_for(task, 20) == "x"

    asyncio.run(both())
    assert len(answered) == 5
    assert not demo.limiter._shares
    assert not demo.limiter._asking


def test_an_address_with_many_questions_is_refused_and_no_other() -> None:
    with gr.Blocks() as demo:
        text = gr.Textbox()
        text.submit(lambda name: name, text, text, concurrency_limit=1)
    share_questions(demo, most=3)

    async def ask(address: str) -> tuple[bool, str]:
        body = PredictBodyInternal(fn_index=0, data=["x"], session_hash=uuid.uuid4().hex)
        done, told, _ = await demo._queue.push(body, request_from(address), None)  # type: ignore[arg-type]
        return done, str(told)

    async def asked() -> list[tuple[bool, str]]:
        return [await ask(address) for address in ("greedy",) * 4 + ("other",)]

    *taken, refused, other = asyncio.run(asked())
    assert [done for done, _ in (*taken, other)] == [True] * 4
    assert refused[0] is False
    assert "Too many questions from here" in refused[1]
