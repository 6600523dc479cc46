"""The service of live captions: text, limits, and that no client harms another."""

import asyncio
import contextlib
import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from socket import SHUT_RDWR, create_connection

import numpy as np
import pytest
from streaming_tools import RATE, cut, make_audio, random_pieces, write_model

from espnet_lmu.bin import main
from espnet_lmu.streaming import Partial

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
client = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from espnet_lmu.serve import app  # noqa: E402
from espnet_lmu.serve import server as server_module  # noqa: E402

PATIENCE = 600  # seconds: a machine may be slow, and busy


def connect(server, rate: int = RATE, **options):
    url = f"ws://{server.host}/captions?rate={rate}"
    return client.connect(url, compression=None, open_timeout=PATIENCE, ping_interval=None, **options)


def pcm(seconds: float, seed: int = 0) -> np.ndarray:
    """Samples as the browser sends them."""
    return np.round(make_audio(seconds, seed) * 32767).astype("<i2")


def text_of(recognizer, samples: np.ndarray) -> str:
    """What a recognizer makes of the samples."""
    recognizer = recognizer.another()
    recognizer.accept(samples.astype(np.float32) / 32768)
    return recognizer.finish().text


def send(socket, samples: np.ndarray, seed: int = 0) -> None:
    """Send samples in pieces of all sizes."""
    for piece in cut(samples, random_pieces(len(samples), random.Random(seed), longest=1.5)):
        socket.send(piece.tobytes())


def receive(socket) -> tuple[str, dict]:
    """The text, and the last message."""
    stable, tail = "", ""
    while (message := json.loads(socket.recv(timeout=PATIENCE)))["kind"] != "end":
        if message["kind"] == "text":
            stable, tail = stable + message["added"], message["tail"]
    return stable + tail, message


def is_served(server, recognizer) -> bool:
    """Whether the server recognizes a recording as it should; it may be full for a moment."""
    samples = pcm(1.5, seed=9)
    for _ in range(10 * PATIENCE):
        with connect(server) as socket:
            if json.loads(socket.recv(timeout=PATIENCE))["kind"] == "ready":
                send(socket, samples)
                socket.send("end")
                text, end = receive(socket)
                return text == text_of(recognizer, samples) and end["code"] == "done"
        time.sleep(0.1)
    return False


def test_clients_at_once_get_the_text_of_their_own_audio(start, recognizer):
    server = start()
    recordings = [pcm(6, seed) for seed in range(3)]
    texts = []
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(server)) for _ in recordings]
        for seed, pieces in enumerate(zip(*(np.array_split(samples, 8) for samples in recordings), strict=True)):
            for socket, piece in zip(sockets, pieces, strict=True):
                send(socket, piece, seed)
        for socket in sockets:
            socket.send("end")
        for socket, samples in zip(sockets, recordings, strict=True):
            text, end = receive(socket)
            assert text == text_of(recognizer, samples) and end == {"kind": "end", "code": "done", "message": ""}
            texts.append(text)
    assert len(set(texts)) == 3


def test_messages_while_audio_comes(start, recognizer):
    with connect(start()) as socket:
        assert json.loads(socket.recv()) == {"kind": "ready"}
        samples, stable = pcm(3), ""
        reference = recognizer.another()
        for piece in np.array_split(samples, 8):
            partial = reference.accept(piece.astype(np.float32) / 32768)
            socket.send(piece.tobytes())
            message = json.loads(socket.recv())
            stable += message["added"]
            assert stable == partial.stable and stable + message["tail"] == partial.text
            assert message["samples"] == round(partial.seconds * RATE) and message["frames"] == reference.frames
            assert message["behind"] == 0
        assert stable


def test_a_full_server_says_so_until_a_client_goes(start, recognizer):
    server = start(clients=1)
    with connect(server) as first:
        first.send(pcm(1).tobytes())
        with connect(server) as second:
            assert receive(second)[1]["code"] == "full"
        first.send("end")
        assert receive(first)[1]["code"] == "done"
    assert is_served(server, recognizer)


def test_of_many_who_are_refused_not_all_are_told(start, monkeypatch):
    monkeypatch.setattr(app, "_REFUSED", 1)
    server = start(clients=1)
    with connect(server) as first, connect(server) as second:
        assert json.loads(first.recv(timeout=PATIENCE))["kind"] == "ready"
        assert json.loads(second.recv(timeout=PATIENCE))["code"] == "full"
        with pytest.raises(InvalidStatus):
            connect(server)


def test_connections_that_ask_for_nothing_lock_nobody_out(start, recognizer, monkeypatch):
    monkeypatch.setattr(server_module, "_CONNECTIONS", 4)
    server = start()
    host, port = server.host.split(":")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(create_connection((host, int(port)))) for _ in range(20)]
        assert is_served(server, recognizer)
        for connection in idle[:10]:  # the oldest are closed
            connection.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


@pytest.mark.parametrize("garbage", [b"\0", b"", "hello", "end of", b"\0" * 10_001])
def test_garbage_ends_a_recording_and_no_other(garbage, start, recognizer):
    server, samples = start(), pcm(2)
    with connect(server) as other, connect(server) as socket:
        other.send(samples[:RATE].tobytes())
        socket.send(samples.tobytes())
        socket.send(garbage)
        text, end = receive(socket)
        assert end["code"] == "garbage" and text == text_of(recognizer, samples)
        other.send(samples[RATE:].tobytes())
        other.send("end")
        assert receive(other) == (text, {"kind": "end", "code": "done", "message": ""})


def test_a_message_too_large_ends_the_connection(start, recognizer):
    server = start(clients=1)
    with connect(server) as socket:
        with pytest.raises(ConnectionClosed, match="1009"):
            socket.send(b"\0" * 100_000)
            receive(socket)
    assert is_served(server, recognizer)


def test_who_disconnects_in_the_middle_leaves_the_place_free(start, recognizer):
    server = start(clients=1)
    with connect(server) as socket:
        send(socket, pcm(4))
        socket.socket.shutdown(SHUT_RDWR)  # no farewell
    assert is_served(server, recognizer)


def test_too_much_audio(start, recognizer):
    samples = pcm(3)
    with connect(start(audio=2)) as socket:
        send(socket, samples)
        text, end = receive(socket)
    assert end["code"] == "audio" and "2 s" in end["message"]
    assert text == text_of(recognizer, samples[: 2 * RATE])


def test_audio_faster_than_it_is_recognized(start, recognizer):
    samples = pcm(1.9)
    with connect(start(behind=1)) as socket:
        socket.send(samples.tobytes())
        text, end = receive(socket)
    assert end["code"] == "behind" and text == text_of(recognizer, samples)


@pytest.mark.parametrize(("limits", "code"), [({"time": 0.3}, "time"), ({"silent": 0.3}, "silent")])
def test_time_is_limited(limits, code, start, recognizer):
    server, samples = start(clients=1, **limits), pcm(1)
    with connect(server) as socket:
        socket.send(samples.tobytes())
        text, end = receive(socket)
    assert end["code"] == code and "0.3 s" in end["message"]
    assert text in (text_of(recognizer, samples), "")  # nothing where the one message took longer than that


def test_audio_at_another_rate_is_refused(start):
    with connect(start(), rate=8000) as socket:
        assert receive(socket)[1]["code"] == "rate"


class StubRecognizer:
    """Takes audio in when it may, and notes from whom."""

    fs, latency, chunk_seconds, frames = RATE, 0.1, 0.1, 0

    def __init__(self, name: str = "", log: list | None = None):
        self.name = name
        self.log = [] if log is None else log
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.children = []

    def another(self):
        self.children.append(StubRecognizer("AB"[len(self.children) % 2], self.log))
        self.children[-1].gate = self.gate
        return self.children[-1]

    def accept(self, samples) -> Partial:
        self.entered.set()
        self.gate.wait(PATIENCE)
        if np.abs(samples).max() > 0.9:
            raise RuntimeError("a defect")
        self.log.append(self.name)
        return Partial("", "", 0.0)

    def finish(self) -> Partial:
        return Partial("", "", 0.0)


def test_clients_take_turns(start):
    stub = StubRecognizer()
    server = start(stub)
    with connect(server) as first, connect(server) as second:
        assert json.loads(first.recv()) == json.loads(second.recv()) == {"kind": "ready"}
        first.send(bytes(4 * RATE))
        assert stub.children[0].entered.wait(PATIENCE)  # the one worker has the first piece
        second.send(bytes(2 * RATE))
        for _ in range(20):  # rounds of the server's loop, until the second client waits for the worker
            second.ping().wait(PATIENCE)
        stub.gate.set()
        for socket in (first, second):
            socket.send("end")
            assert receive(socket)[1]["code"] == "done"
    assert "".join(stub.log) == "ABABAA"


def test_a_defect_ends_one_recording(start):
    stub = StubRecognizer()
    stub.gate.set()
    server = start(stub, clients=2)
    with connect(server) as other:
        for _ in range(3):
            with connect(server) as socket, pytest.raises(ConnectionClosed):
                socket.send(np.full(100, 32000, dtype="<i2").tobytes())
                receive(socket)
        other.send(bytes(100))
        other.send("end")
        assert receive(other)[1]["code"] == "done"


def test_messages_are_read_no_faster_than_is_fair(monkeypatch):
    from espnet_lmu.serve import app

    clock = [100.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    async def message() -> dict:
        return {"type": "websocket.receive", "bytes": b"\0\0"}

    monkeypatch.setattr(app.anyio, "current_time", lambda: clock[0])
    monkeypatch.setattr(app.anyio, "sleep", sleep)

    class Socket:
        receive = staticmethod(message)

    async def read(count: int) -> None:
        for _ in range(count):
            await inbox.next()

    inbox = app._Inbox(Socket())
    asyncio.run(read(200))
    assert clock[0] == 100
    asyncio.run(read(400))
    assert clock[0] == pytest.approx(102, abs=0.02)
    clock[0] += 60  # rest does not earn more than the first burst
    asyncio.run(read(400))
    assert clock[0] == pytest.approx(163, abs=0.02)


def test_other_pages_are_refused(start):
    server = start()
    for origin in ("http://example.com", f"http://localhost.example.com:{server.host.split(':')[1]}", "null"):
        with pytest.raises(InvalidStatus, match="403"):
            connect(server, origin=origin)
    with connect(server, origin=f"http://{server.host}") as socket:
        assert json.loads(socket.recv()) == {"kind": "ready"}
    # a name from elsewhere that was made to point to this machine
    request = urllib.request.Request(f"http://{server.host}/", headers={"Host": "example.com"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_the_page_is_one_file(start):
    with urllib.request.urlopen(f"http://{start().host}/") as response:
        page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "://" not in page and "src=" not in page and "<link" not in page


def test_mistakes_are_one_line(start, model, tmp_path, capsys, monkeypatch):
    folder = model[0].parent
    bidirectional = write_model(tmp_path, {"bidirectional": True, "attention_context": None}, input_size=80)[0].parent
    port = start().host.split(":")[1]
    for arguments, message in (
        ((folder, "--port", port), f"--port {port}: "),
        ((folder, "--host", "192.0.2.1", "--port", 0), "--host 192.0.2.1"),
        ((folder, "--port", 70000), "--port 70000"),
        ((tmp_path / "nowhere", "--port", 0), "nowhere: no such file"),
        ((bidirectional, "--port", 0), f"{bidirectional}: this encoder cannot stream"),
        ((bidirectional, "--port", 0), "train it with bidirectional: false and attention_context: [left, chunk]"),
    ):
        assert main.main(["serve", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    for option in ("--max_clients", "--max_audio", "--max_time", "--chunk"):
        with pytest.raises(SystemExit, match="2"):
            main.main(["serve", str(folder), option, "0"])
        assert f"{option}: invalid positive number value: '0'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.main(["serve", str(folder)]) == 1
    assert "pip install 'espnet_lmu[serve]'" in capsys.readouterr().err
