"""A small random model, as those of the streaming tests, and a server of it on a free port."""

import sys
import threading
import time
from pathlib import Path

import pytest

from espnet_lmu.streaming import StreamingRecognizer

sys.path.append(str(Path(__file__).parents[1] / "streaming"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """``config.yaml`` and weights."""
    from streaming_tools import write_model

    return write_model(tmp_path_factory.mktemp("model"), input_size=80)


@pytest.fixture(scope="session")
def recognizer(model):
    return StreamingRecognizer(*model)


class RunningServer:
    """A server in a thread."""

    def __init__(self, app):
        from espnet_lmu.serve.server import make_server, open_socket

        self.socket = open_socket("127.0.0.1", 0)
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = make_server(app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def start(recognizer):
    """Starts a server: with these limits, and with another recognizer, if one is given."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    from espnet_lmu.serve.app import Limits, build_app
    from espnet_lmu.serve.server import allowed_hosts

    servers = []

    def start_server(recognizer=recognizer, **limits) -> RunningServer:
        app = build_app(recognizer, "a model", Limits(**limits), allowed_hosts("127.0.0.1"), workers=1)
        servers.append(RunningServer(app))
        return servers[-1]

    yield start_server
    for server in servers:
        server.stop()
