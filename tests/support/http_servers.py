"""Real servers as subprocesses on a free port of 127.0.0.1, and requests to them."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 120  # a few on a quiet machine; two cores that others use too


@dataclass
class Server:
    """A server that answers at `http://127.0.0.1:port`."""

    process: subprocess.Popen
    port: int
    log: Path

    def ask(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        """Status and JSON of the answer to a POST; `body` is JSON, or bytes as they are."""
        with self._open(path, body, timeout) as response:
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    def stream(self, path: str, body: dict[str, Any], timeout: float = 60) -> list[dict[str, Any]]:
        """The events of a streamed answer, without the `[DONE]` that some servers send."""
        with self._open(path, body | {"stream": True}, timeout) as response:
            lines = [line.decode().removeprefix("data: ").strip() for line in response]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def get(self, path: str) -> int:
        """Status of the answer to a GET."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def _open(self, path: str, body: Any, timeout: float) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"content-type": "application/json"}
        )
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            return error


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, start_seconds: float = START_SECONDS, **options: Any
) -> Iterator[Server]:
    """Starts a server, waits until it says it is well, and stops it at the end."""
    with log.open("a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
    server = Server(process, port, log)
    try:
        _wait(server, start_seconds)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if server.get("/health") == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"The server did not come up:\n{server.log.read_text()[-4000:]}")
