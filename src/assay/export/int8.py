"""An ONNX file with weights and activations of 8 bits: static quantisation by onnxruntime."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Floats

IN_FLOAT = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the layers, the first ones: few multiplications, most of the error
MOST_ERROR = 0.05  # of the logits, in their standard deviations over images
MEASURED = 64  # training images
BATCH = 32
HELD_IMAGES = 8
LAYERS = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Clip", "Relu")
KINDS = [*LAYERS, *ACTIVATIONS]  # no "Add": a residual sum has a wide range, and no multiplication


def write_int8(network: Path, images: Floats, path: Path) -> Iterator[None]:
    """Write an ONNX file with weights (by channel) and activations of 8 bits, their ranges those on training images.

    The resize, the head, residual sums and the first layers stay in float32: of `IN_FLOAT` the least share with which
    logits of training images are off by at most `MOST_ERROR` (root mean square); each next file has the next share.
    Biases make up for what rounded weights add on average (Nagel et al. 2019, "Data-free quantization through weight
    equalization and bias correction", section 4.2; here by means on training images).
    """
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.shape_inference import quant_pre_process

    original = onnx.load(network)
    outside = [node.name for node in original.graph.node if _is_outside(node)]
    with tempfile.TemporaryDirectory(prefix="assay-int8-", dir=path.parent) as scratch:
        merged = Path(scratch) / "merged.onnx"
        quant_pre_process(str(network), str(merged), skip_symbolic_shape=True)  # merges batch-norms into convolutions
        model, ranges = onnx.load(merged), _ranges(merged, images)
    layers = _layers(model.graph.node, outside)
    (expected,) = _outputs(model, images[:MEASURED], ["logits"])
    shifts = _shifts(model, [nodes[0] for nodes in layers], images[:BATCH])
    counts = sorted({round(share * len(layers)) for share in IN_FLOAT})
    for kept in counts:
        excluded = [*outside, *(node.name for node in chain.from_iterable(layers[:kept]))]
        quantizer = QDQQuantizer(
            _with_biases(model, shifts[kept:]),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=None,
            nodes_to_exclude=excluded,
            op_types_to_quantize=KINDS,
            extra_options={},
        )
        quantizer.quantize_model()
        result = quantizer.model.model
        (logits,) = _outputs(result, images[:MEASURED], ["logits"])
        error = np.mean((logits - expected) ** 2) / np.mean(expected.var(axis=0))
        if error <= MOST_ERROR**2 or kept == counts[-1]:
            del result.metadata_props[:]
            result.metadata_props.extend(original.metadata_props)
            onnx.save_model(result, str(path))
            yield


def _ranges(network: Path, images: Floats) -> Any:
    """Return the smallest and largest value of each tensor on images."""
    from onnxruntime.quantization import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.split(images, range(BATCH, len(images), BATCH)))

        def get_next(self) -> dict[str, Floats] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    calibrator = create_calibrator(network, KINDS, str(network.with_name("outputs.onnx")))
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _is_outside(node: Any) -> bool:
    """Return whether a node belongs to the resize or the head, by the module that the exporter noted."""
    scopes = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "")
    return "'resize'" in scopes or "'classifier.head'" in scopes


def _layers(nodes: Sequence[Any], outside: Sequence[str]) -> list[list[Any]]:
    """Return each layer with its activation, in order."""
    return [
        [node, *(one for one in nodes if one.op_type in ACTIVATIONS and one.input[0] == node.output[0])]
        for node in nodes
        if node.op_type in LAYERS and node.name not in outside
    ]


def _shifts(model: Any, layers: Sequence[Any], images: Floats) -> list[tuple[str, Floats]]:
    """Return the bias of each layer, and what rounded weights add to the mean of its outputs; none of a matrix.

    Padding is taken for more of the same.
    """
    from onnx.numpy_helper import to_array

    weights = {one.name: to_array(one) for one in model.graph.initializer}
    convolutions = [
        one for one in layers if one.op_type == "Conv" and len(one.input) == 3 and {*one.input[1:]} <= weights.keys()
    ]
    inputs = [one.input[0] for one in convolutions]
    sums = [np.zeros(1)] * len(inputs)
    for first in range(0, len(images), HELD_IMAGES):  # all inputs of a batch are held
        tensors = _outputs(model, images[first : first + HELD_IMAGES], inputs)
        sums = [total + tensor.sum(axis=0).mean(axis=(1, 2)) for total, tensor in zip(sums, tensors, strict=True)]
    shifts = []
    for layer, total in zip(convolutions, sums, strict=True):
        kernel, mean = weights[layer.input[1]], total / len(images)  # (out, in of a group, H, W), (in)
        steps = np.maximum(np.abs(kernel).max(axis=(1, 2, 3), keepdims=True), 1e-12) / 127
        added = (np.rint(kernel / steps) * steps - kernel).sum(axis=(2, 3))
        means = mean.reshape(-1, added.shape[1])  # (groups, in of a group)
        shifts.append((added * np.repeat(means, len(added) // len(means), axis=0)).sum(axis=1))
    of_layer = {layer.name: (layer.input[2], shift) for layer, shift in zip(convolutions, shifts, strict=True)}
    return [of_layer.get(layer.name, ("", np.zeros(0))) for layer in layers]


def _with_biases(model: Any, shifts: Sequence[tuple[str, Floats]]) -> Any:
    """Return a copy of the model whose biases are less by the shifts."""
    from onnx.numpy_helper import from_array, to_array

    changed, by_name = copy.deepcopy(model), dict(shifts)
    for one in changed.graph.initializer:
        if one.name in by_name:
            one.CopyFrom(from_array((to_array(one) - by_name[one.name]).astype(np.float32), one.name))
    return changed


def _outputs(model: Any, images: Floats, names: Sequence[str]) -> list[Floats]:
    """Return tensors of a network, by their names, for images."""
    import onnx
    import onnxruntime

    changed, inside = copy.deepcopy(model), [name for name in dict.fromkeys(names) if name != "images"]
    if not inside:
        return [images for _ in names]
    del changed.graph.output[:]
    changed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inside
    )
    session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    computed = dict(zip(inside, session.run(inside, {"images": images}), strict=True))
    return [computed.get(name, images) for name in names]
