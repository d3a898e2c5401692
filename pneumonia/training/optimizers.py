"""An optimizer that torch has for matrices alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # of a singular value, its cube and its fifth power; Jordan et al. 2024
ITERATIONS = 5
TINY = 1e-7  # least norm that a matrix is divided by
LIKE_ADAM = 0.2  # root mean square of a step at a rate of 1: about what AdamW's is


class Muon(torch.optim.AdamW):
    """Hidden kernels by Muon, all else by AdamW, at the same rate.

    The momentum of a kernel [out, ...] is taken as a matrix of `out` rows, and the step is about the orthogonal matrix
    nearest to it: all its directions are learnt at one pace, where AdamW's step is ruled by a few (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). Steps are as large as AdamW's, so that its rate and decay fit here too
    (Liu et al. 2025, arXiv:2502.16982). torch.optim.Muon takes no kernel of a convolution and nothing beside kernels.

    params    groups as torch's optimizers take them; parameters of two and more dimensions in the first are kernels
    momentum  share of the last steps' mean gradient that is kept (Nesterov's)
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, momentum: float
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: expected a share in [0, 1)")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.param_groups:
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients of kernels are used up by it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        for kernel in group["params"]:
            if kernel.ndim > 1 and kernel.grad is not None:
                self.turn(kernel, kernel.grad, group)
                kernel.grad = None  # so that AdamW, which takes all the others, passes it by
        super().step()
        return loss

    def turn(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """The step of one kernel [out, ...]."""
        state = self.state[kernel]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW asks every state for it when one is loaded
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["step"] += 1
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(mean, group["momentum"]).flatten(1)
        change = orthogonal(ahead) * (LIKE_ADAM * max(ahead.shape) ** 0.5)
        kernel.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change.view_as(kernel), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """[M, N] -> [M, N] of the same singular vectors, singular values between .7 and 1.2 but where they were very small.

    Newton and Schulz's iteration with NEWTON_SCHULZ for coefficients. It is a polynomial of the smaller Gram matrix
    times the matrix, so that but for the first and the last product all are of the smaller side.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    matrix = matrix / matrix.norm().clamp(min=TINY)
    gram = matrix @ matrix.T
    whole = factor = factor_of(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = factor_of(gram)
        whole = factor @ whole
    return whole @ matrix


def factor_of(gram: Tensor) -> Tensor:
    """Gram matrix [M, M] -> [M, M], by which one iteration multiplies the matrix that it is of."""
    first, third, fifth = NEWTON_SCHULZ
    factor = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
    factor.diagonal().add_(first)
    return factor
