from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overproof.core import device, host
from overproof.core.device import Processor


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    host.processor.cache_clear()
    yield
    host.processor.cache_clear()


def name_it(monkeypatch: pytest.MonkeyPatch, kernel: str, library: str, system: str) -> str:
    monkeypatch.setattr(device, "processor", lambda: Processor(kernel, frozenset()))
    monkeypatch.setattr(host.platform, "processor", lambda: library)
    monkeypatch.setattr(host.sys, "platform", system)
    return host.processor()


@pytest.mark.parametrize(
    ("kernel", "library", "name"),
    [
        ("Xeon", "x86_64", "Xeon"),
        ("unknown", "aarch64", "aarch64"),
        ("unknown", "", "unknown"),
    ],
)
def test_the_processor_has_the_best_name_there_is(
    kernel: str, library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_it(monkeypatch, kernel, library, "linux") == name


def test_macos_is_asked_for_its_brand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sysctl"
    program.write_text('#!/bin/sh\n[ "$2" = machdep.cpu.brand_string ] && echo "Apple M4"\n')
    program.chmod(0o755)
    monkeypatch.setattr(host, "SYSCTL", program)
    assert name_it(monkeypatch, "unknown", "arm", "darwin") == "Apple M4"


@pytest.mark.parametrize("failure", [OSError(), subprocess.TimeoutExpired("sysctl", 5)])
def test_a_brand_that_cannot_be_asked_for_is_no_error(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    assert name_it(monkeypatch, "unknown", "arm", "darwin") == "arm"


def test_a_machine_is_named_with_its_versions() -> None:
    found = host.machine()
    assert list(found) == [
        "processor", "cores", "system", "python", "torch", "transformers", "xllamacpp",
    ]  # fmt: skip
    assert found["cores"] == device.cores()
