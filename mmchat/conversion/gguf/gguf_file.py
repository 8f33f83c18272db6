"""A GGUF file: metadata and tensors, written one tensor at a time.

The format is described in ggml-org/ggml, docs/gguf.md. Names of keys and tensors are those that llama.cpp reads
(ggml-org/llama.cpp, gguf-py/gguf/constants.py and tools/mtmd/clip-impl.h).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmchat.errors import UserError
from mmchat.extras import require

DTYPES = ("f32", "f16", "bf16", "q8_0")
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""Our name of a dtype -> `gguf.LlamaFileType`."""
LARGEST_F16 = 65504.0

Value = bool | int | float | str | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Weight:
    """A tensor under its name in the file."""

    name: str
    tensor: torch.Tensor
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Reorders the values when they are written. Keeps the shape."""
    keep_f32: bool = False
    """Written as f32, whatever the dtype of the file. Vectors always are."""


def write_gguf(
    path: Path, architecture: str, metadata: dict[str, Value], weights: Iterable[Weight], dtype: str
) -> None:
    """Write a GGUF file.

    Matrices get `dtype`; vectors, tensors marked `keep_f32` and, for q8_0, matrices whose rows are not a multiple of 32
    values stay f32.

    Args:
        path: The file. Its folder exists.
        architecture: `general.architecture`.
        metadata: Keys and values. Integers become uint32, in lists int32; floats become float32.
        weights: The tensors.
        dtype: One of `DTYPES`.

    Raises:
        UserError: The `gguf` package is not installed, or a value is too large for f16.
    """
    require("gguf")
    import gguf

    weights = list(weights)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    for key, value in metadata.items():
        _add_value(writer, key, value)
    try:
        for weight in weights:
            kind = gguf.GGMLQuantizationType[_type_name(weight, dtype)]
            _add_info(writer, weight, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight in weights:
            kind = gguf.GGMLQuantizationType[_type_name(weight, dtype)]
            writer.write_tensor_data(gguf.quantize(_values(weight, kind.name), kind))
    finally:
        writer.close()


def _add_info(writer: Any, weight: Weight, kind: Any) -> None:
    """Declare a tensor. Types of blocks are declared by the shape of their bytes."""
    import gguf

    shape = tuple(weight.tensor.shape)
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    count = weight.tensor.numel() // values_per_block * bytes_per_block
    if values_per_block > 1:
        shape = gguf.quant_shape_to_byte_shape(shape, kind)
    dtype = np.dtype(np.float32 if values_per_block == 1 else np.uint8)
    writer.add_tensor_info(weight.name, shape, dtype, count, kind)


def _add_value(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _type_name(weight: Weight, dtype: str) -> str:
    """Name of the tensor's `gguf.GGMLQuantizationType`."""
    if weight.keep_f32 or weight.tensor.dim() != 2:
        return "F32"
    return "F32" if dtype == "q8_0" and weight.tensor.shape[-1] % 32 else dtype.upper()


def _values(weight: Weight, type_name: str) -> np.ndarray:
    tensor = weight.tensor.detach().float().cpu()
    tensor = tensor if weight.prepare is None else weight.prepare(tensor)
    if type_name == "F16" and (largest := tensor.abs().max().item()) > LARGEST_F16:
        raise UserError(
            f"{weight.name} holds {largest:g}, but f16 ends at {LARGEST_F16:g}; choose --dtype bf16, q8_0 or f32"
        )
    return tensor.contiguous().numpy()
