"""GGUF, the file of llama.cpp: written in pure Python for architectures that it calls `llama`.

The mapping follows llama.cpp's own converter (`convert_hf_to_gguf.py`, classes `LlamaModel` and
`TextModel`), so that a file of ours and a file of theirs hold the same numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
    quants,
)
from numpy.typing import NDArray
from safetensors import safe_open

from overproof.core.blocks import BLOCK, LEVELS, Kind, kind_of
from overproof.core.errors import StageError
from overproof.release.targets import gguf_vocabulary

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
ROTARY = ("default", "linear", "llama3")
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Gguf:
    """One number type of GGUF.

    Attributes:
        kind: type of the matrices, see `kind_of`; vectors stay fp32.
        file_type: what the header calls the file.
    """

    name: str
    kind: Kind
    file_type: LlamaFileType
    file: str = "model.gguf"

    def demand(self, architecture: str, config: Any, tokenizer: dict[str, Any]) -> None:
        """See `Target.demand`."""
        check_architecture(architecture, config)
        gguf_vocabulary.cut_of(tokenizer)

    def write(self, model: Path, path: Path) -> None:
        """Write a saved model as GGUF.

        1. Refuse what llama.cpp's `llama` graph would compute differently.
        2. Write the shape, the rotary embedding and the tokenizer into the header.
        3. Write the tensors in the order of their names, matrices in this type, vectors in fp32.

        Args:
            model: folder of `save_pretrained`: config, safetensors, tokenizer.
            path: the file to write.

        Raises:
            StageError: another architecture, activation, position scheme or tokenizer, or
                a file of the folder is missing or cut.
        """
        config = read_config(model)
        # 1.
        check_architecture((config.architectures or ["unknown"])[0], config)
        writer = GGUFWriter(path, "llama")
        try:
            # 2.
            _add_shape(writer, config)
            writer.add_file_type(self.file_type)
            writer.add_quantization_version(GGML_QUANT_VERSION)
            gguf_vocabulary.add(writer, model, config)
            _add_sampling(writer, model)
            # 3.
            for target, name, values in _tensors(model, config):
                kind = kind_of(self.kind, name, values.shape, _largest(name, values))
                stored = GGMLQuantizationType[kind]
                data = quants.quantize(_without_dust(values, kind), stored)
                writer.add_tensor(target, data, raw_dtype=stored)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    def tensor_types(self, path: Path) -> dict[str, int]:
        """Number of tensors of each type, as the file says.

        Raises:
            StageError: no GGUF file, or a cut one.
        """
        return tensor_types(path)


Q8_0 = Gguf("gguf-q8_0", "Q8_0", LlamaFileType.MOSTLY_Q8_0)
Q4_0 = Gguf("gguf-q4_0", "Q4_0", LlamaFileType.MOSTLY_Q4_0)
F16 = Gguf("gguf-f16", "F16", LlamaFileType.MOSTLY_F16)


def tensor_types(path: Path) -> dict[str, int]:
    """Number of tensors of each type in a GGUF file, by the type's name.

    Raises:
        StageError: no GGUF file, or a cut one.
    """
    try:
        counts = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise StageError(f"{path} cannot be read as GGUF", details=[str(error)]) from error
    return dict(sorted(counts.items()))


def read_config(model: Path) -> Any:
    """The model's configuration, rotary embedding in the form of transformers 5.

    Raises:
        StageError: the folder has no readable `config.json`.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(f"{model} holds no model", details=[str(error).splitlines()[0]]) from error


def check_architecture(found: str, config: Any) -> None:
    """Refuse a model that llama.cpp's `llama` graph does not compute.

    Raises:
        StageError: with the field that differs, what was got and what is wanted.
    """
    if found not in ARCHITECTURES:
        raise StageError(
            f"a {found} cannot be exported to GGUF",
            details=[f"got {found}, wanted one of {', '.join(ARCHITECTURES)}"],
            hint="choose a teacher of that kind, such as SmolLM2, Llama or Mistral; or make no "
            "build, export.targets: [], and the release holds safetensors alone",
        )
    if config.hidden_act != "silu":
        raise StageError(
            f"a {found} with activation {config.hidden_act!r} cannot be exported to GGUF",
            details=["llama.cpp computes silu"],
        )
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ROTARY:
        raise StageError(
            f"rotary embedding {rotary!r} cannot be exported to GGUF",
            details=[f"wanted one of {', '.join(ROTARY)}"],
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise StageError(
            f"a {found} with a sliding window cannot be exported to GGUF",
            details=[f"window {window}, context {config.max_position_embeddings}"],
        )


def head_size(config: Any) -> int:
    """Width of one attention head."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _add_sampling(writer: GGUFWriter, model: Path) -> None:
    """How the model's makers advise to sample, where its generation configuration says so."""
    advice = gguf_vocabulary.generation_config(model)
    if not advice.get("do_sample"):
        return
    for name, add in (
        ("temperature", writer.add_sampling_temp),
        ("top_k", writer.add_sampling_top_k),
        ("top_p", writer.add_sampling_top_p),
    ):
        if advice.get(name) is not None:
            add(advice[name])


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_size(config))
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _largest(name: str, values: Floats) -> float:
    """The largest absolute value of a tensor.

    Raises:
        StageError: a value is no finite number.
    """
    found = float(np.abs(values).max())
    if not math.isfinite(found):
        raise StageError(
            "the model has a weight that is not finite",
            details=[f"in {name}"],
            hint="train again with a lower train.learning_rate",
        )
    return found


def _without_dust(values: Floats, kind: Kind) -> Floats:
    """Zeros for each block whose scale is nothing in fp16, which are read back in any case.

    1 / scale can be infinite there, and the levels of the block are then undefined.
    """
    if kind not in LEVELS:
        return values
    blocks = values.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True) / LEVELS[kind]
    return np.where(scale.astype(np.float16) == 0, np.float32(0), blocks).reshape(values.shape)


def _tensors(model: Path, config: Any) -> Iterator[tuple[str, str, Floats]]:
    """Tensors, one in memory at a time: llama.cpp's name, the model's own, values.

    They are sorted by the model's names.
    """
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", "rope_freqs", llama3_factors(config)
    for name, file in sorted(_where(model).items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp uses the embedding where there is no output matrix
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise StageError(
                "the model has a tensor that llama.cpp does not know", details=[f"{name} in {file}"]
            )
        values = _read(file, name)
        if name.rsplit(".", 1)[0].endswith(ROTATED):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = permute(values, heads)
        yield target, name, values


def permute(values: Floats, heads: int) -> Floats:
    """Reorder the rows of a query or key projection for llama.cpp's rotary embedding.

    transformers rotates the first half of a head against its second half; llama.cpp rotates
    neighbours. Same function, other order of rows (`LlamaModel.permute` of its converter).
    """
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(values.shape))


def llama3_factors(config: Any) -> Floats:
    """Divisors of the rotary frequencies in Llama 3.1 and later, one for each pair of a head.

    Source: `_compute_llama3_parameters` of transformers; llama.cpp divides by the same numbers.
    """
    rope = config.rope_parameters
    size = head_size(config)
    context = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for pair in range(0, size, 2):
        waves = context / (2 * math.pi * rope["rope_theta"] ** (pair / size))
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def _where(model: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    index = model / "model.safetensors.index.json"
    try:
        if index.is_file():
            rows = json.loads(index.read_bytes())["weight_map"]
            return {name: model / file for name, file in rows.items()}
        with safe_open(model / "model.safetensors", framework="pt") as file:
            return dict.fromkeys(file.keys(), model / "model.safetensors")
    except Exception as error:  # safetensors raises a type of its own, outside the tree of OSError
        raise StageError(
            f"{model} has no readable weights", details=[str(error).splitlines()[0]]
        ) from error


def _read(file: Path, name: str) -> Floats:
    import torch

    with safe_open(file, framework="pt") as tensors:
        values: Floats = tensors.get_tensor(name).to(torch.float32).numpy()
    return values
