from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from overproof.teacher.gguf_once import REPEATED, read_once


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "some.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("some.number", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_file_is_read_once(file: Path) -> None:
    with read_once():
        first, second = gguf.GGUFReader(file), gguf.GGUFReader(file)
        assert first is second
        assert first.fields["some.number"].contents() == 7
        names = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
        assert names[0] is names[1]
        assert names[0].get_name("model.embed_tokens") == "token_embd"
    assert gguf.GGUFReader(file) is not gguf.GGUFReader(file)


def test_what_was_before_is_there_again_after_an_error() -> None:
    before = [getattr(gguf, name) for name in REPEATED]
    with pytest.raises(OSError), read_once():
        gguf.GGUFReader(Path("no such file"))
    assert [getattr(gguf, name) for name in REPEATED] == before
