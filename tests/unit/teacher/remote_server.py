"""A real model behind a real OpenAI-compatible server, and a proxy before it that injects faults.

The server is llama.cpp's own, run by `xllamacpp` in a process of its own, with the built-in
teacher's file. The proxy passes requests on as they are, counts them, and spoils the answers that
a test tells it to.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from overproof.teacher import files

MODEL = "smollm2-135m-instruct"
BUILTIN = f"builtin:{MODEL}"
SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.model_alias, p.port = sys.argv[1], {sys.argv[2]}, 0
p.n_ctx, p.n_parallel, p.verbosity = 4096, 4, -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.fit_params = p.warmup = False
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
PATIENCE_SECONDS = 60


@contextmanager
def serving(model: str = MODEL) -> Iterator[str]:
    """A running server's address; it ends with the block, or with this process."""
    file, _ = files.identify(BUILTIN)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(file), model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield address
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_SECONDS)


@dataclass
class Fault:
    """How one answer is spoiled.

    Attributes:
        status, headers, message: of an answer that the server never sees the question of.
        cut: of the real answer only half of the bytes come, then the connection ends.
        seconds: before the answer.
        model: the id in the real answer is replaced by it.
        drop: a field that the real answer then lacks.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "spoiled"
    cut: bool = False
    seconds: float = 0.0
    model: str | None = None
    drop: str | None = None


class Proxy:
    """Passes on what comes; `faults` spoils the next answers in turn, `always` all after them."""

    def __init__(self, address: str) -> None:
        self.upstream = address
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.seen: list[dict[str, Any]] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Bodies of the chat requests, in the order of their coming."""
        return [row["body"] for row in self.seen if row["path"].endswith("/chat/completions")]

    def reset(self) -> None:
        self.faults, self.always, self.seen, self.most = [], None, [], 0

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _next(self, path: str) -> Fault:
        if not path.endswith("/chat/completions"):
            return Fault()
        return self.faults.pop(0) if self.faults else self.always or Fault()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass(b"")

            def do_POST(self) -> None:
                self._pass(self.rfile.read(int(self.headers["content-length"])))

            def _pass(self, data: bytes) -> None:
                with proxy.lock:
                    fault = proxy._next(self.path)
                    body = json.loads(data) if data else None
                    row = {"path": self.path, "headers": dict(self.headers), "body": body}
                    proxy.seen.append(row)
                    proxy.busy += 1
                    proxy.most = max(proxy.most, proxy.busy)
                try:
                    self._answer(data, fault)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with proxy.lock:
                        proxy.busy -= 1

            def _answer(self, data: bytes, fault: Fault) -> None:
                time.sleep(fault.seconds)
                if fault.status is not None:
                    content = json.dumps({"error": {"message": fault.message}}).encode()
                    self._send(fault.status, content, fault.headers)
                    return
                status, content = proxy.forward(self.command, self.path, data)
                if fault.model or fault.drop:
                    row = json.loads(content)
                    row |= {"model": fault.model} if fault.model else {}
                    row.pop(fault.drop, None)
                    content = json.dumps(row).encode()
                self._send(status, content, {}, cut=fault.cut)

            def _send(
                self, status: int, content: bytes, headers: dict[str, str], cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection |= cut

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def forward(self, method: str, path: str, data: bytes) -> tuple[int, bytes]:
        host = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
        try:
            connection.request(method, path, data, {"content-type": "application/json"})
            found = connection.getresponse()
            return found.status, found.read()
        finally:
            connection.close()


def recipe_text(url: str, train: Path, heldout: Path, base: str = BUILTIN) -> str:
    """A recipe of a remote teacher, as a user writes it."""
    return f"""
name: remote
data: {{train: "{train}", heldout: "{heldout}", licence: LicenseRef-Owned}}
teacher:
  model: {MODEL}
  channel: api
  system: Answer in one short sentence.
  endpoint: {{url: "{url}", operator: own, concurrency: 2, timeout_seconds: 60}}
sample: {{prompts: 6, heldout_prompts: 3, temperature: 0.2, top_p: 0.9, max_new_tokens: 6}}
signals: {{kind: text}}
student: {{name: SmolLM2-Remote, base: "{base}", layers: 2, vocabulary: 290, importance: even}}
train:
  divergence: {{kind: cross-entropy}}
  controls: []
  steps: 3
  sequences: 1
  sequence_length: 256
export: {{min_agreement: 0.0, max_kl: 5.0}}
"""
