"""The page of live captions, and the WebSocket on which audio comes in and text goes out.

The browser opens ``/captions?rate=RATE`` and waits for the server's first message. It sends 16-bit little-endian mono
samples at that rate as binary messages, then the word ``end``. The server sends JSON objects, by their ``kind``:

- ``ready``: audio may come.
- ``text``, after each piece of audio: ``added``, what follows the stable text so far; ``tail``, words after it that may
  still change; ``samples`` and ``frames``, recognized so far; ``behind``, seconds of audio that wait.
- ``end``, the last one, after which the browser closes the connection: ``code`` is ``done``, or else ``message`` says
  to the user why there is no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import numpy as np
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from espnet_lmu.streaming.recognizer import Partial, StreamingRecognizer

# Seconds of one client's audio that are recognized before it is another's turn.
_TURN = 0.5
# Messages a second that are read of one client, beyond a first burst: more of them wait in the network. A message costs
# the one thread that reads for all clients the same time, however short it is.
_MESSAGES, _BURST = 200, 200
# Seconds after its time that a client has to take its last messages, and after the last one to close the connection.
_GRACE, _FAREWELL = 20.0, 2.0
# Clients that are being told that the server is full; more of them are not told.
_REFUSED = 32
# The page has all its parts in itself: nothing else may be loaded, and no other page may frame it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)

END = "end"


@dataclass(frozen=True)
class Limits:
    """What one client may take, in seconds where nothing else is said.

    Attributes:
        clients: that are served at once.
        audio: of a recording.
        time: from the connection to its end.
        behind: of audio that was received and waits.
        silent: without a message of the client.
    """

    clients: int = 8
    audio: float = 600.0
    time: float = 900.0
    behind: float = 10.0
    silent: float = 20.0


class _Inbox:
    """Messages of one client, no faster than is fair.

    Args:
        websocket: accepted.
    """

    def __init__(self, websocket: WebSocket):
        self.websocket = websocket
        self._due = anyio.current_time()  # of the next message

    async def next(self) -> dict:
        """The next message; raises WebSocketDisconnect."""
        await anyio.sleep(max(0.0, self._due - anyio.current_time() - _BURST / _MESSAGES))
        self._due = max(self._due, anyio.current_time()) + 1 / _MESSAGES
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        return message

    async def drain(self) -> None:
        """Read until the client goes."""
        while True:
            await self.next()


class _Recording:
    """One client's recording.

    Args:
        websocket: accepted.
        recognizer: at the beginning of a recording, not used elsewhere.
        limits: of this client.
        workers: for whom all clients' pieces queue, first come, first served. As a client has one piece in the queue
            at most, they take turns.
    """

    def __init__(
        self, websocket: WebSocket, recognizer: StreamingRecognizer, limits: Limits, workers: anyio.CapacityLimiter
    ):
        self.websocket = websocket
        self.inbox = _Inbox(websocket)
        self.recognizer = recognizer
        self.limits = limits
        self.workers = workers
        self.bytes_a_second = 2 * recognizer.fs
        self._waiting = bytearray()
        self._end: tuple[str, str] | None = None  # code and message
        self._changed = anyio.Event()
        self._stable = 0  # characters of the stable text that were sent

    async def run(self) -> None:
        """Serve the client until its recording ends, or it goes."""
        # Whoever reads no answers would stay for ever.
        with anyio.move_on_after(self.limits.time + _GRACE):
            async with anyio.create_task_group() as tasks:
                self.tasks = tasks
                tasks.start_soon(self._listen)
                tasks.start_soon(self._answer)

    async def _listen(self) -> None:
        """Take in audio until there is a reason not to; then wait until the client goes."""
        try:
            with anyio.move_on_after(self.limits.time) as scope:
                self._end = await self._receive()
            if scope.cancelled_caught:
                self._end = "time", f"The server serves a client for {self.limits.time:g} s, which are over."
            self._changed.set()
            await self.inbox.drain()
        except WebSocketDisconnect:
            self.tasks.cancel_scope.cancel()

    async def _receive(self) -> tuple[str, str]:
        left = int(self.limits.audio * self.recognizer.fs) * 2
        while True:
            message = None
            with anyio.move_on_after(self.limits.silent):
                message = await self.inbox.next()
            if message is None:
                return "silent", f"No audio came for {self.limits.silent:g} s."
            if message.get("text") == END:
                return "done", ""
            samples = message.get("bytes")
            if not samples or len(samples) % 2:
                return "garbage", "The server got something that is no audio."
            self._waiting += samples[:left]
            self._changed.set()
            left -= len(samples)
            if left < 0:
                return "audio", f"The server takes {self.limits.audio:g} s of audio at most."
            if len(self._waiting) > self.limits.behind * self.bytes_a_second:
                return "behind", (
                    f"The server is {self.limits.behind:g} s behind: the audio comes faster than it can be recognized. "
                    "Try again when fewer people use it."
                )

    async def _answer(self) -> None:
        """Recognize what was received, and what it was that ended it."""
        turn = 2 * round(_TURN * self.recognizer.fs)
        try:
            await self._send("ready")
            while True:
                if self._waiting:
                    piece = np.frombuffer(bytes(self._waiting[:turn]), dtype="<i2").astype(np.float32) / 32768
                    del self._waiting[:turn]
                    await self._send_text(await self._work(self.recognizer.accept, piece))
                elif self._end is None:
                    self._changed = anyio.Event()
                    await self._changed.wait()
                else:
                    break
            await self._send_text(await self._work(self.recognizer.finish))
            code, message = self._end
            await self._send("end", code=code, message=message)
            await anyio.sleep(_FAREWELL)
        except WebSocketDisconnect:
            pass
        self.tasks.cancel_scope.cancel()

    async def _work(self, *call) -> Partial:
        return await anyio.to_thread.run_sync(*call, limiter=self.workers)

    async def _send_text(self, partial: Partial) -> None:
        added, self._stable = partial.stable[self._stable :], len(partial.stable)
        await self._send(
            "text",
            added=added,
            tail=partial.text[self._stable :],
            samples=round(partial.seconds * self.recognizer.fs),
            frames=self.recognizer.frames,
            behind=round(len(self._waiting) / self.bytes_a_second, 3),
        )

    async def _send(self, kind: str, **values: object) -> None:
        await self.websocket.send_json({"kind": kind, **values})


def build_app(
    recognizer: StreamingRecognizer, name: str, limits: Limits, hosts: list[str] | None, workers: int
) -> FastAPI:
    """The web service.

    Args:
        recognizer: whose loaded model all clients share.
        name: of the model, for the page.
        limits: of each client.
        hosts: names under which the page may be asked for; None for any. Without them, a page from elsewhere whose
            name was made to point here would pass for ours.
        workers: threads that compute.
    """
    app = FastAPI(openapi_url=None)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    limiter = anyio.CapacityLimiter(workers)
    clients = refused = 0

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    @app.get("/model")
    async def describe_model() -> dict:
        return {
            "name": name,
            "rate": recognizer.fs,
            "latency": recognizer.latency,
            "chunk": recognizer.chunk_seconds,
            "audio": limits.audio,
            "behind": limits.behind,
        }

    @app.websocket("/captions")
    async def captions(websocket: WebSocket, rate: int = 0) -> None:
        nonlocal clients, refused
        origin = websocket.headers.get("origin")
        # Any page on the web may open a WebSocket to this machine's loopback address; browsers say which page it is.
        if origin is not None and urlsplit(origin).netloc != websocket.headers.get("host"):
            await websocket.close()
            return
        refusal = None
        if clients >= limits.clients:
            refusal = {"code": "full", "message": f"The server is full: it serves {limits.clients} at once. Try again."}
        elif rate != recognizer.fs:
            refusal = {"code": "rate", "message": f"The model takes audio at {recognizer.fs} Hz. Load the page again."}
        if refusal is not None and refused >= _REFUSED:
            await websocket.close()
            return
        clients += refusal is None
        refused += refusal is not None
        try:
            await websocket.accept()
            if refusal is None:
                await _Recording(websocket, recognizer.another(), limits, limiter).run()
            else:
                await websocket.send_json({"kind": "end", **refusal})
                with anyio.move_on_after(_FAREWELL):
                    await _Inbox(websocket).drain()
        except WebSocketDisconnect:
            pass
        finally:
            clients -= refusal is None
            refused -= refusal is not None

    return app
