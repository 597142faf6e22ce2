"""Answers drawn by llama.cpp's server, in a process of its own: started by `sample.py`.

The server that `xllamacpp` carries, over HTTP, with as many clients as it has slots.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import xllamacpp

HTTP_SECONDS = 600


def main() -> None:
    """Answer all prompts, and write tokens and seconds."""
    job = json.loads(Path(sys.argv[1]).read_bytes())
    server = _server(job)
    ask = partial(_ask, server.listening_address, job["request"])
    first, *others = job["prompts"]
    ask(first)  # what is taken from the disk at the first token is no part of the speed
    with ThreadPoolExecutor(job["streams"]) as clients:
        began = time.perf_counter()
        tokens = sum(clients.map(ask, others))
        seconds = time.perf_counter() - began
    found = {"tokens": tokens, "seconds": seconds}
    Path(job["answer"]).write_text(json.dumps(found), encoding="utf-8")


def _server(job: dict[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = job["file"]
    parameters.n_parallel = job["streams"]
    parameters.n_ctx = job["streams"] * job["context"]
    parameters.cpuparams.n_threads = job["threads"]
    parameters.cpuparams_batch.n_threads = job["threads"]
    parameters.cont_batching = True
    parameters.verbosity = -1
    parameters.fit_params = False
    return xllamacpp.Server(parameters)


def _ask(address: str, settings: dict[str, Any], prompt: list[int]) -> int:
    """Tokens of an answer, its end among them."""
    request = urllib.request.Request(  # noqa: S310 - the address of our own server
        f"{address}/completion",
        json.dumps({"prompt": prompt, **settings}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:  # noqa: S310
        return int(json.loads(answer.read())["tokens_predicted"])


if __name__ == "__main__":
    main()
