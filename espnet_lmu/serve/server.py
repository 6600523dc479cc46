"""A web server for the service: sockets, and what `espnet-lmu serve` starts."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from espnet_lmu.errors import UserError

_LARGEST_MESSAGE = 1 << 16  # bytes: half a second of audio at 48 kHz, and more
# Bytes of a client that wait in the network. All messages in them are taken apart at once, while all others wait.
_RECEIVE_BUFFER = 1 << 14
# Connections that have not become WebSockets, and those accepted in one go: far fewer than the files that a process may
# have open, for asyncio stands still once there are no more to be had.
_CONNECTIONS, _BACKLOG = 128, 32


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> list[str] | None:
    """Names under which browsers know a server at `host`; None where they cannot be known."""
    return ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(host) else None


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or the host is not this machine.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}") from None
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # connections inherit it
    return listening


def address(listening: socket.socket, host: str) -> str:
    """What to type into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


class _Connection(H11Protocol):
    """Plain HTTP. Of too many connections the oldest is closed, so that those that ask for nothing lock nobody out."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.opened = self.loop.time()
        others = (connection for connection in self.connections if isinstance(connection, _Connection))
        plain = [connection for connection in others if not connection.transport.is_closing()]
        if len(plain) > _CONNECTIONS:
            min(plain, key=lambda connection: connection.opened).transport.abort()


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server whose `run(sockets=[...])` serves until Ctrl-C."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Connection,
            backlog=_BACKLOG,
            ws="websockets-sansio",
            ws_max_size=_LARGEST_MESSAGE,
            # Samples hardly shrink, and what is unpacked could be a thousand times what came.
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=5,
            log_level="warning",
        )
    )


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[listening])
