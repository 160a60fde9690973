"""A T5 that was exported to ONNX: its weights, by the names and in the layout of a Hugging Face file.

An export is a program of operations, of which only the weights are wanted. Those that the exporter could keep
have their names; a matrix that a product reads has lost its, but the product is called after the module it was
in (``/enc/block.0/layer.0/SelfAttention/q/MatMul``). Weights in 8 bit (``onnxruntime``'s dynamic quantization)
are decoded: (value - zero point) * scale. The files are read by the ``onnx`` library and never run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from .errors import ModelFileError, quoted
from .gguf import TensorInfo

HALVES = {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
# What follows the names that an exporter's wrapper put in front.
_NAME = re.compile(
    r"(?:.*\.)?((?:block\.\d+\..+|final_layer_norm|shared|embed_tokens|lm_head)\.weight)"
)
_OUTSIDE = ("shared.", "lm_head.")
_PRODUCTS = ("MatMul", "MatMulInteger")


@dataclass(frozen=True)
class OnnxTensor(TensorInfo):
    """A weight of an export: decoded to float32 when its bytes are asked for."""

    values: numpy.ndarray | None = field(default=None, repr=False, compare=False)
    scale: numpy.ndarray | None = field(default=None, repr=False, compare=False)
    zero: numpy.ndarray | None = field(default=None, repr=False, compare=False)
    turned: bool = False

    def raw(self) -> numpy.ndarray:
        """The weight as the bytes of a float32 array of ``shape``."""
        assert self.values is not None
        made = self.values.astype(numpy.float32)
        if self.scale is not None:
            made -= 0 if self.zero is None else self.zero.astype(numpy.float32)
            made *= self.scale
        return (
            numpy.ascontiguousarray(made.T if self.turned else made).reshape(-1).view(numpy.uint8)
        )

    def release(self) -> None:
        """Nothing is mapped."""


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported encoder-decoder."""
    return all((folder / name).is_file() for name in HALVES.values())


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """(what config.json would say, tensors by Hugging Face's names) of an exported T5.

    Anything else is a ModelFileError, a missing ``onnx`` library a ValueError.
    """
    tensors: dict[str, TensorInfo] = {}
    tanh = False
    for half, name in HALVES.items():
        graph = _graph(folder / name)
        tanh = tanh or any(node.op_type == "Tanh" for node in graph.node)
        for tensor in _weights(graph, half):
            tensors.setdefault(tensor.name, tensor)
    tensors.pop("encoder.embed_tokens.weight", None)
    return _config(tensors, tanh, str(folder)), tensors


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise ValueError(
            f"reading {path.name} needs the onnx library: pip install 'tinytorch-gpu[onnx]'"
        ) from None
    try:
        return onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own, and missing external files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFileError(f"{path} is no readable ONNX file: {quoted(reason, 120)}") from None


def _weights(graph: Any, half: str) -> Iterator[OnnxTensor]:
    """The weights of one graph that have, or get, a name of the model's."""
    from onnx import numpy_helper

    arrays = {each.name: each for each in graph.initializer}
    places = {
        node.input[1]: re.sub(r"/MatMul[^/]*$", "/weight", node.name).replace("/", ".")
        for node in graph.node if node.op_type in _PRODUCTS
    }  # fmt: skip
    for name, stored in arrays.items():
        plain = name.removesuffix("_quantized")
        if plain != name and (plain + "_scale") not in arrays:
            continue
        found = _NAME.fullmatch(places.get(name, plain))
        if found is None:
            continue
        values = numpy_helper.to_array(stored)
        turned = name in places  # a product's matrix is (in, out), Hugging Face's (out, in)
        parts = [
            numpy_helper.to_array(arrays[plain + end]) if plain + end in arrays else None
            for end in ("_scale", "_zero_point")
        ]
        own = found[1] if found[1].startswith(_OUTSIDE) else f"{half}.{found[1]}"
        shape = values.shape[::-1] if turned else values.shape
        yield OnnxTensor(
            own, tuple(shape), "F32", 4 * values.size, values=values,
            scale=None if plain == name else parts[0], zero=None if plain == name else parts[1],
            turned=turned,
        )  # fmt: skip


def _config(tensors: dict[str, TensorInfo], tanh: bool, where: str) -> dict[str, Any]:
    """``config.json``, from the names and shapes of the weights."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ModelFileError(f"{where} is no T5: the export has no weight {quoted(name)}")
        found = tensors[name].shape
        if len(found) != 2:
            raise ModelFileError(f"{where}: {quoted(name)} has shape {found}, not two sizes")
        return found

    first = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = shape(first + "relative_attention_bias.weight")
    inner, dense = shape(first + "q.weight")[0], "encoder.block.0.layer.1.DenseReluDense."
    gated = dense + "wi_0.weight" in tensors
    kind = "gelu_new" if tanh else "relu"
    vocabulary, width = shape("shared.weight")
    return {
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": max(1, inner // max(1, heads)),
        "d_ff": shape(dense + ("wi_0.weight" if gated else "wi.weight"))[0],
        "num_heads": heads,
        "num_layers": _layers(tensors, "encoder"),
        "num_decoder_layers": _layers(tensors, "decoder"),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated and tanh else kind,
        # Version 1.1, which has gates, is the one whose head is its own and whose states are not scaled.
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "scale_decoder_outputs": not gated,
        "eos_token_id": 1,
    }


def _layers(tensors: dict[str, TensorInfo], half: str) -> int:
    numbers = [int(m[1]) for n in tensors if (m := re.match(rf"{half}\.block\.(\d+)\.", n))]
    return 1 + max(numbers, default=-1)
