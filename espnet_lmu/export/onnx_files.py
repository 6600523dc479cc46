"""ONNX files: traced, described, quantized, run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_lmu.errors import UserError
from espnet_lmu.export.layers import LoopLMU

OPSET = 17
_FEW_NUMBERS = 1000  # a constant of so many is not worth sharing
# Modules of the graphs whose products are of constants with many orders of magnitude between them.
_KEPT_IN_FLOAT = ("/legendre", "/log_mel")


def require_onnx() -> None:
    """Raise `UserError` where the packages of the extra `export` are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name}: pip install 'espnet_lmu[export]'") from None


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Without the tracer's warnings: what it takes for constant (sizes of layers, checks of input) is so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_onnx(
    path: Path,
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
    metadata: dict[str, object],
) -> None:
    """Trace a graph into an ONNX file.

    Args:
        example: inputs to trace with.
        inputs, outputs: their names.
        dynamic: name -> {dimension: its name} of what may vary.
        metadata: properties written into the file.
    """
    import onnx

    with quiet_tracing(), torch.no_grad():
        # By tracing: torch.export refuses the input layers' check of lengths, whose result is a Python number.
        torch.onnx.export(
            graph,
            example,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic,
        )
    model = onnx.load(path)
    _collect_in_loops(model.graph)
    _share_constants(model.graph)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _collect_in_loops(graph) -> None:
    """Let loops collect what they make in each round themselves, in place of a list that they carry and append to.

    The exporter's list is copied in each round: for ten minutes of audio that takes five times as long as all else.
    """
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}
    stacks = {node.input[0]: node for node in graph.node if node.op_type == "ConcatFromSequence"}
    for loop in [node for node in graph.node if node.op_type == "Loop"]:
        body = loop.attribute[0].g
        insert = next(node for node in body.node if node.op_type == "SequenceInsert")
        position = [value.name for value in body.output].index(insert.output[0])
        # A body has inputs (round, condition, carried ...) and outputs (condition, carried ..., collected ...).
        stack, empty = stacks[loop.output[position - 1]], makers[loop.input[position + 1]]
        body.node.remove(insert)
        body.node.append(helper.make_node("Identity", [insert.input[1]], [insert.output[0]]))
        element = body.output[position].type.sequence_type.elem_type.tensor_type
        collected = helper.make_tensor_value_info(insert.output[0], element.elem_type, None)
        for values, index in (
            (body.input, position + 1),
            (body.output, position),
            (loop.input, position + 1),
            (loop.output, position - 1),
        ):
            del values[index]
        body.output.append(collected)
        loop.output.append(stack.output[0])
        graph.node.remove(stack)
        graph.node.remove(empty)


def _share_constants(graph) -> None:
    """Store what several layers hold alike, such as the operators of their Legendre system, once."""
    from onnx import numpy_helper

    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        value = numpy_helper.to_array(node.attribute[0].t)
        if value.size > _FEW_NUMBERS:
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            graph.node.remove(node)
    names, same = {}, {}
    for tensor in list(graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.size > _FEW_NUMBERS:
            first = names.setdefault((value.shape, value.dtype, value.tobytes()), tensor.name)
            if first != tensor.name:
                same[tensor.name] = first
                graph.initializer.remove(tensor)
    for node in _all_nodes(graph):
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)


def _all_nodes(graph) -> Iterator:
    """The nodes of a graph and of the bodies of its loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g)


def quantize(source: Path, target: Path, graph: nn.Module) -> None:
    """Write `source`, an ONNX file of `graph`, with 8-bit weights.

    Products of activations and weights are computed on integers (onnxruntime's dynamic quantization). The original
    LMU's loop stays in float: its weights into the hidden state are stored in 8 bits, one scale for each unit, and
    expanded once a call; those into the memory stay as they are, for they hold a delay system that rounding makes
    unstable.
    """
    # onnxruntime suggests a preprocessing on the root logger; it is for convolutions of images.
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = [node.name for node in onnx.load(source).graph.node]
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            # Processors without VNNI add two products of 8 bits in 16 bits, which 8-bit weights overflow: 7 bits, then,
            # and a scale for each output, which makes up for the eighth.
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=[name for name in names if any(module in name for module in _KEPT_IN_FLOAT)],
        )
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load(target)
    for name, layer in graph.named_modules():
        if isinstance(layer, LoopLMU):
            _store_in_8_bits(model.graph, f"{name}.transition", layer.hidden_size)
    _sort_nodes(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _store_in_8_bits(graph, name: str, hidden_size: int) -> None:
    """Replace the initializer `name` (n, n) by its first columns as 8-bit integers and the others as they are."""
    from onnx import helper, numpy_helper

    initializer = next(tensor for tensor in graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(initializer)
    hidden, memory = weight[:, :hidden_size], weight[:, hidden_size:]
    scale = np.maximum(np.abs(hidden).max(0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    parts = {
        "quantized": np.round(hidden / scale).astype(np.int8),
        "scale": scale,
        "zero_point": np.zeros(hidden_size, np.int8),
        "memory": np.ascontiguousarray(memory),
    }
    graph.initializer.remove(initializer)
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}.{key}") for key, value in parts.items())
    inputs = [f"{name}.{key}" for key in ("quantized", "scale", "zero_point")]
    graph.node.insert(0, helper.make_node("Concat", [f"{name}.hidden", f"{name}.memory"], [name], axis=1))
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [f"{name}.hidden"], axis=1))


def _names_read(node) -> set[str]:
    """Values that a node reads, those that the body of a loop takes from outside among them."""
    names = set(node.input)
    for attribute in node.attribute:
        body = attribute.g
        own = {value.name for value in (*body.input, *body.initializer)}
        for inner in body.node:
            names |= _names_read(inner) - own
            own |= set(inner.output)
    return names


def _sort_nodes(graph) -> None:
    """Put every node behind those whose outputs it reads; onnxruntime's quantization overlooks the bodies of loops."""
    waiting = list(graph.node)
    made = {name for node in waiting for name in node.output}
    ready: set[str] = set()
    in_order = []
    while waiting:
        later = []
        for node in waiting:
            if _names_read(node) & made <= ready:
                in_order.append(node)
                ready |= set(node.output)
            else:
                later.append(node)
        waiting = later
    del graph.node[:]
    graph.node.extend(in_order)


class OnnxFile:
    """An ONNX file in onnxruntime, on one thread.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs for the inputs, both in the file's order."""
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)))
