"""How app.py is served: the headers of every response, and the browser that opens once the server listens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.starlette import App

from ui.compat import open_browser

HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'self'",  # a foreign page that frames the app could lead a click to Run
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # an address may hold a prompt
}


class WithHeaders:
    """Adds `HEADERS` to every response; websockets pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)


@asynccontextmanager
async def opened(app: App) -> AsyncIterator[None]:
    """The life of the server. Streamlit opens a browser by itself for a plain script, and not for an `App`."""
    open_browser()
    yield


MIDDLEWARE = [Middleware(WithHeaders)]
