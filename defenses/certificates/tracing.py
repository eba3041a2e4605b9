"""Reads a network off its code: the steps between input and logits."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ...attacks.errors import UnsupportedError
from .layers import max_pool, nonnegative, of_layer, scaled, unsupported
from .operations import Affine, Monotone, Operation, Rectifier, Step, Sum

_FUNCTIONS: dict[Any, Callable[[], Operation]] = {
    torch.relu: lambda: Rectifier(0.0),
    functional.relu: lambda: Rectifier(0.0),
    torch.sigmoid: lambda: Monotone(torch.sigmoid),
    torch.tanh: lambda: Monotone(torch.tanh),
    functional.relu6: lambda: Monotone(functional.relu6),
}
_METHODS: dict[str, Callable[[], Operation]] = {
    "relu": lambda: Rectifier(0.0),
    "sigmoid": lambda: Monotone(torch.sigmoid),
    "tanh": lambda: Monotone(torch.tanh),
    "contiguous": lambda: nonnegative(lambda x: x),
}
_AVERAGES = {functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.flatten}
_ARITHMETIC = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.sub: "sub",
    operator.mul: "mul",
    torch.mul: "mul",
    operator.truediv: "div",
    torch.div: "div",
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
}
_SIZE = "size"


def steps_of(module: nn.Module) -> tuple[Step, ...]:
    """The steps of a network in eval mode; step i gives result i + 1, result 0 is the input, the last the logits.

    Raises:
        UnsupportedError: when the code branches on its data, or holds a layer that cannot be bounded.
    """
    tracer = fx.Tracer()
    if tracer.is_leaf_module(module, ""):
        module = nn.Sequential(module)  # a single layer would be read as the functions it is made of
    try:
        graph = tracer.trace(module)
    except Exception as error:  # whatever the user's forward does with a symbol instead of a tensor
        raise UnsupportedError(
            f"{type(module).__name__} cannot be bounded: its forward cannot be traced ({str(error).splitlines()[0]}). "
            "Use randomised smoothing, whose certificate needs nothing of the model"
        ) from error
    return _Reader(module).read(graph)


class _Reader:
    """Turns the nodes of a trace into steps, one after the other."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.steps: list[Step] = []
        self.places: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, Any] = {}

    def read(self, graph: fx.Graph) -> tuple[Step, ...]:
        for node in graph.nodes:
            match node.op:
                case "placeholder" if not self.places:
                    self.places[node] = 0
                case "placeholder":
                    self.constants[node] = node.args[0] if node.args else None
                case "get_attr":
                    self.constants[node] = _attribute(self.module, str(node.target))
                case "output":
                    return self._finish(node.args[0])
                case _:
                    self._read(node)
        raise UnsupportedError(f"{type(self.module).__name__} cannot be bounded: it returns nothing")

    def _finish(self, output: Any) -> tuple[Step, ...]:
        place = self.places.get(output) if isinstance(output, fx.Node) else None
        if place is None or place == 0:
            raise UnsupportedError(f"{type(self.module).__name__} cannot be bounded: its output is not one tensor")
        return tuple(self.steps[:place])

    def _read(self, node: fx.Node) -> None:
        if _is_size(node):
            self.constants[node] = _SIZE
            return
        inputs = [argument for argument in node.all_input_nodes if argument in self.places]
        if not inputs:
            raise unsupported(f"{node.name} (it does not depend on the input)")
        operation, taken = self._operation(node, inputs)
        self.steps.append(Step(operation, tuple(self.places[one] for one in taken), node.name))
        self.places[node] = len(self.steps)

    def _operation(self, node: fx.Node, inputs: list[fx.Node]) -> tuple[Operation, list[fx.Node]]:
        if node.op == "call_module":
            return of_layer(self.module.get_submodule(str(node.target)), str(node.target)), inputs
        kind = _ARITHMETIC.get(node.target)
        if kind is not None:
            return self._arithmetic(node, kind)
        return self._called(node), inputs[:1]

    def _arithmetic(self, node: fx.Node, kind: str) -> tuple[Operation, list[fx.Node]]:
        if len(node.args) != 2 or node.kwargs:
            raise unsupported(f"{node.name} ({kind} with options)")
        first, second = node.args
        tensors = [one for one in (first, second) if isinstance(one, fx.Node) and one in self.places]
        if len(tensors) == 2 and kind in ("add", "sub"):
            return Sum(1 if kind == "add" else -1), tensors
        if len(tensors) == 2:
            raise unsupported(f"{node.name} (a product of two results)")
        constant = self._constant(second if tensors[0] is first else first, node)
        one = torch.ones_like(constant)
        match kind, tensors[0] is first:
            case "add", _:
                return scaled(one, constant), tensors
            case "sub", True:
                return scaled(one, -constant), tensors
            case "sub", False:
                return scaled(-one, constant), tensors
            case "mul", _:
                return scaled(constant, torch.zeros_like(constant)), tensors
            case "div", True:
                return scaled(1 / constant, torch.zeros_like(constant)), tensors
        raise unsupported(f"{node.name} (division by a result)")

    def _constant(self, value: Any, node: fx.Node) -> Tensor:
        known = self.constants.get(value) if isinstance(value, fx.Node) else value
        if isinstance(known, Tensor):
            return known.detach()
        if isinstance(known, int | float):
            like = next(self.module.parameters(), torch.zeros(()))
            return torch.tensor(float(known), dtype=like.dtype, device=like.device)
        raise unsupported(f"{node.name} ({node.target})")

    def _called(self, node: fx.Node) -> Operation:
        """A function or method of one tensor."""
        target: Any = node.target
        arguments, options = tuple[Any, ...](node.args[1:]), dict[str, Any](node.kwargs)
        simple = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
        if simple is not None:
            return simple()
        if target is functional.leaky_relu:
            slope = float(arguments[0] if arguments else options.get("negative_slope", 0.01))
            if 0 <= slope <= 1:
                return Rectifier(slope)
        if target is functional.dropout and not (arguments[1] if len(arguments) > 1 else options.get("training", True)):
            return nonnegative(lambda x: x)
        if target is functional.max_pool2d:
            options.pop("return_indices", None)
            return _pooled(node, *arguments, **options)
        if target in ("flatten", "view", "reshape") or target in (torch.flatten, torch.reshape):
            return self._reshaped(node, arguments)
        if target in _AVERAGES and not _nodes(arguments):
            average: Any = target
            return nonnegative(lambda x: average(x, *arguments, **options))
        if target in ("mean", torch.mean) and not _nodes(arguments):
            return _mean(node, *arguments, **options)
        raise unsupported(f"{node.name} ({getattr(target, '__name__', target)})")

    def _reshaped(self, node: fx.Node, arguments: tuple[Any, ...]) -> Affine:
        """Reshapings that keep the samples apart: the first axis stays the batch."""
        if node.target in ("flatten", torch.flatten):
            if (arguments[0] if arguments else node.kwargs.get("start_dim", 0)) == 1:
                last: Any = arguments[1] if len(arguments) > 1 else node.kwargs.get("end_dim", -1)
                return nonnegative(lambda x: x.flatten(1, last))
            raise unsupported(f"{node.name} (flatten over the batch)")
        shape = tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], list | tuple) else arguments
        batch, rest = shape[0], shape[1:]
        by_size = isinstance(batch, fx.Node) and self.constants.get(batch) is _SIZE
        if (by_size or (batch == -1 and -1 not in rest)) and rest and all(isinstance(side, int) for side in rest):
            return nonnegative(lambda x: _reshaped(x, rest, node.name))
        raise unsupported(f"{node.name} ({node.target} to {shape})")


def _pooled(
    node: fx.Node, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Operation:
    return max_pool(node.name, kernel_size, stride, padding, dilation, ceil_mode)


def _mean(node: fx.Node, dim: Any = None, keepdim: bool = False) -> Affine:
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())

    def mean(x: Tensor) -> Tensor:
        if not dims or any(one % x.dim() == 0 for one in dims):
            raise unsupported(f"{node.name} (mean over the batch)")
        return x.mean(dims, keepdim=keepdim)

    return nonnegative(mean)


def _reshaped(x: Tensor, rest: tuple[Any, ...], name: str) -> Tensor:
    if -1 not in rest and math.prod(rest) != x[0].numel():
        raise unsupported(f"{name} (a reshaping across samples)")
    return x.reshape(len(x), *rest)


def _is_size(node: fx.Node) -> bool:
    """``x.size(0)``, ``x.shape``, ``x.shape[0]``: sizes that a reshaping names."""
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "shape"
    return (
        node.op == "call_function"
        and node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and _is_size(node.args[0])
    )


def _nodes(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(argument, fx.Node) for argument in arguments)


def _attribute(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
