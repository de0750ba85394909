"""The graph of autograd behind some tensors: what their gradient goes through, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def graph_behind(outputs: Iterable[Tensor]) -> tuple[set[Any], set[int]]:
    """The nodes of the graph, and the ids of its leaves: of the tensors that get a gradient.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> nodes, leaves = graph_behind([2 * a])
        >>> len(nodes), id(a) in leaves, id(b) in leaves
        (2, True, False)
    """
    outputs = list(outputs)
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    nodes: set[Any] = set(waiting)
    while waiting:
        following = {node for node, _ in waiting.pop().next_functions if node is not None} - nodes
        nodes |= following
        waiting += following
    leaves = {id(tensor) for tensor in outputs if tensor.requires_grad and tensor.grad_fn is None}
    return nodes, leaves | {id(node.variable) for node in nodes if hasattr(node, "variable")}
