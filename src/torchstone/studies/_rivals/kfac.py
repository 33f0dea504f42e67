"""K-FAC: Gauss-Newton steps in which each layer has a matrix of its own, a Kronecker product of two small ones.

Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*, ICML 2015. For a layer
with inputs a and outputs z, the block of the matrix is taken as A (x) G with A the mean of a a^T and G the mean of the
curvature d^2 l / dz^2, so that the step is dW -> G^{-1} dW A^{-1}. Here the curvature is that of the squared error,
passed back exactly (no sampled targets), and both factors are damped like the whole matrix of
:class:`torchstone.dynamics.RegularizedGaussNewton`. No momentum, no running averages: all samples are in each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from torchstone.dynamics.second_order import damped_inverse
from torchstone.errors import DivergedError

__all__ = ["KFAC", "factors"]


class KFAC:
    """Steps on the mean squared error of a network of linear layers without biases, and ReLUs between them."""

    def __init__(self, network: nn.Sequential, lr: float, damping: float) -> None:
        self.network, self.lr, self.damping = network, lr, damping

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch."""
        weights = list(self.network.parameters())
        loss = mse_loss(self.network(x), y)
        if not loss.isfinite():
            raise DivergedError(f"the loss is {float(loss.detach()):g} before the step")
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, (inside, outside) in zip(weights, gradients, factors(self.network, x), strict=True):
                left, right = (damped_inverse(factor, self.damping) for factor in (outside, inside))
                weight.sub_(left @ gradient @ right, alpha=self.lr)


@torch.no_grad()
def factors(network: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(A, G) of each linear layer; for one sample their Kronecker products are the blocks of the matrix."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    inputs = []
    for layer in layers:
        inputs.append(x)
        x = layer(x).relu()
    outputs = layers[-1].out_features
    # d outputs / d z of each layer, from the last to the first; the Hessian of the mean squared error is 2 / outputs.
    jacobian = torch.eye(outputs, dtype=x.dtype).expand(len(x), -1, -1)
    found = []
    for number in reversed(range(len(layers))):
        outside = (jacobian.mT @ jacobian).mean(0) * 2 / outputs
        found.append((inputs[number].T @ inputs[number] / len(x), outside))
        jacobian = (jacobian @ layers[number].weight) * (inputs[number] > 0)[:, None]
    return found[::-1]
