"""Who asks: the session of a request, and the address that it came from."""

from __future__ import annotations

import uuid

import gradio as gr
from fastapi import Request

from dpexplore.serving.app_context import AppContext
from dpexplore.serving.sessions import PROGRAM


def session_of(app: AppContext, request: gr.Request) -> str:
    """The session of a page, or of a program that names one; its address is noted, for its share of the server."""
    session = request.session_hash or ""
    app.sessions.note_address(session, address_of(request))
    return session


def address_of(request: gr.Request | Request) -> str:
    """Where a request came from, by the trusted proxies' word."""
    return str(getattr(request.client, "host", "") or "")


def program_session(app: AppContext, request: gr.Request) -> str:
    """A session for one question of a program; programs are known by their address alone, and share what a page has."""
    session = PROGRAM + uuid.uuid4().hex
    app.sessions.note_address(session, address_of(request))
    return session
