"""Where clients meet the server: keys, sizes, how many at once, and who has left.

Pure ASGI, in front of everything: a body is read whole, within its limits, before any of it is looked at; a
client that leaves has its request cancelled wherever it is.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from serve.http.errors import ApiError, envelope
from serve.http.limits import HttpLimits
from serve.http.metrics import Metrics

log = logging.getLogger(__name__)
OPEN_PATHS = ("/health", "/metrics", "/openapi.json")
CLIENT_LEFT = 499  # nginx's number; nobody is there to read it
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Border:
    """Wraps an ASGI app.

    Args:
        keys: API keys of clients; empty: open to everybody who reaches the port.
    """

    def __init__(self, app: Any, keys: Sequence[str], limits: HttpLimits, metrics: Metrics) -> None:
        self.app = app
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.limits, self.metrics = limits, metrics
        self.open_requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = _Sent(send)
        started = time.monotonic()
        counted = scope["path"] not in OPEN_PATHS
        self.open_requests += counted
        self.metrics.open.set(self.open_requests)
        try:
            if counted:
                self._check_key(scope)
                if self.open_requests > self.limits.max_concurrent:
                    most = self.limits.max_concurrent
                    message = f"{most} requests are open; try again in a moment"
                    raise ApiError(429, message, code="too_many_requests")
            body = await self._read_body(scope, receive)
            await self._run(scope, body, receive, sent)
        except ApiError as error:
            response = envelope(error.status, error.message, error.param, error.code)
            await response(scope, receive, sent)
        except _ClientLeft:
            sent.status = CLIENT_LEFT
        finally:
            self.open_requests -= counted
            self.metrics.open.set(self.open_requests)
            self.metrics.request_done(scope["path"], sent.status, time.monotonic() - started)

    def _check_key(self, scope: Message) -> None:
        """Every key is compared, and digests of one length, so that time tells nothing of any of them."""
        if not self.digests:
            return
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        given = hashlib.sha256(header.removeprefix(b"Bearer ")).digest()
        equal = [hmac.compare_digest(given, digest) for digest in self.digests]
        if not any(equal):
            message = "api_key: is missing or wrong; send it as a bearer token"
            raise ApiError(401, message, code="invalid_api_key")

    async def _read_body(self, scope: Message, receive: Receive) -> bytes:
        most = self.limits.max_body_bytes
        too_large = ApiError(413, f"body: is over {most} bytes; send less at once", "body", "body_too_large")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(length) > most:  # the HTTP parser has refused what is no number
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeft
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            waited = self.limits.body_timeout_s
            raise ApiError(408, f"body: did not come within {waited:g} s; send it at once", "body") from None

    async def _run(self, scope: Message, body: bytes, receive: Receive, sent: "_Sent") -> None:
        """The app over a body that is at hand, cancelled when the client leaves."""
        left = asyncio.Event()
        unread = [body]

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.create_task(self.app(scope, replay, sent))
        watching = asyncio.create_task(watch())
        try:
            await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not sent.complete:
                raise _ClientLeft
            await asyncio.wait({work})
            if work.exception() is not None:  # answered already, with 500; its place is the log
                log.error("request failed", exc_info=work.exception())
        finally:
            left.set()
            for task in (work, watching):
                task.cancel()
            await asyncio.gather(work, watching, return_exceptions=True)


class _ClientLeft(Exception):
    """The connection was closed before the answer was complete."""


class _Sent:
    """Remembers what has been sent: the status, and whether the answer is complete."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status = 500
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.complete |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await self.send(message)
