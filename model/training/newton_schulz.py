"""The nearest orthogonal matrices of a stack, by a Newton-Schulz iteration of products alone.

In: matrices (N, R, C), R <= C. Out: U V^T, about, of each U S V^T, in the type of the input. Without singular values:
an odd polynomial of a matrix, repeated, drives all its singular values towards 1 and keeps the vectors.

Legend: N matrices of one shape, R rows, C columns, R <= C.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.network.linear import is_for_onednn, product
from model.training.compilation import compiled

Coefficients = tuple[float, float, float]
Multiply = Callable[[Tensor, Tensor], Tensor]  # a b^T

# One odd quintic a x + b x^3 + c x^5 per iteration, each optimal for the interval that the previous one maps to
# (Polar Express, arXiv:2505.16932). Three map singular values in [0.01, 1] to [0.73, 1.27], five map those in
# [0.001, 1] to [0.88, 1.12].
NEWTON_SCHULZ = {
    3: ((8.0195, -22.9987, 16.8990), (3.6414, -2.7254, 0.5369), (2.6684, -1.9829, 0.4533)),
    5: (
        (8.3197, -23.8595, 17.5314),
        (4.1227, -2.9806, 0.5521),
        (3.9616, -2.9403, 0.5591),
        (3.3104, -2.4825, 0.5094),
        (2.2938, -1.6627, 0.4181),
    ),
}
# The last iterations go by Gram matrices: more amplify roundings of small singular values, to 2e-4 with five, 2e-6
# with three.
MAX_GRAM_STEPS = 3


def orthogonalised(gradient_NRC: Tensor, n_steps: int = 5, compile_backend: str | None = None) -> Tensor:
    """U V^T, about, for each matrix U S V^T, in 3 or 5 steps; bfloat16 on CUDA, float32 elsewhere.

    With a `compile_backend` one graph per shape does it all; fused code rounds otherwise.
    """
    if compile_backend is not None:
        return compiled(_orthogonalised_batched, compile_backend, dynamic=False)(gradient_NRC, n_steps)
    if len(gradient_NRC) and is_for_onednn(gradient_NRC[0], gradient_NRC[0]):  # twice as fast, but takes no stacks
        x_NRC = _normalised(gradient_NRC)
        return torch.stack([newton_schulz(x_RC, n_steps, product) for x_RC in x_NRC])
    return _orthogonalised_batched(gradient_NRC, n_steps)


def _normalised(gradient_NRC: Tensor) -> Tensor:
    """Matrices with singular values of at most 1, in the type that the iteration computes in."""
    x_NRC = gradient_NRC.bfloat16() if gradient_NRC.is_cuda else gradient_NRC.float()
    # the Frobenius norm bounds the largest singular value; 1 % more, since above 1 the polynomials run away
    return x_NRC / (1.01 * x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)


def _orthogonalised_batched(gradient_NRC: Tensor, n_steps: int) -> Tensor:
    x_NRC = _normalised(gradient_NRC)
    if is_for_gram_matrices(x_NRC):
        return newton_schulz(x_NRC, n_steps, batched_product).to(gradient_NRC.dtype)
    for a, b, c in NEWTON_SCHULZ[n_steps]:
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.to(gradient_NRC.dtype)


def newton_schulz(x_RC: Tensor, n_steps: int, multiply: Multiply) -> Tensor:
    """The same iteration by products a b^T, of one matrix, or of a stack by a `multiply` for stacks."""
    coefficients = NEWTON_SCHULZ[n_steps]
    n_gram_steps = MAX_GRAM_STEPS if is_for_gram_matrices(x_RC) else 0
    for of_step in coefficients[: len(coefficients) - n_gram_steps]:
        x_RC = multiply(polynomial(multiply(x_RC, x_RC), of_step, multiply), x_RC.mT)
    return by_gram_matrices(x_RC, coefficients[-n_gram_steps:], multiply) if n_gram_steps else x_RC


def is_for_gram_matrices(x_NRC: Tensor) -> bool:
    """Whether the matrices are wide enough to gain (above C = 1.5 R) and precise enough: the small singular values of
    a Gram matrix are squares, which bfloat16 loses."""
    return x_NRC.dtype is torch.float32 and x_NRC.size(-1) >= 2 * x_NRC.size(-2)


def by_gram_matrices(x_RC: Tensor, coefficients: Sequence[Coefficients], multiply: Multiply) -> Tensor:
    """Steps of the iteration, with two products of size R R C in all and not two per step.

    With G = X X^T a step is X' = P X, where P = a + b G + c G^2, and so G' = P G P: all steps are products of R x R
    matrices that commute, and the last one multiplies with X.
    """
    gram_RR = multiply(x_RC, x_RC)
    step_RR = whole_RR = polynomial(gram_RR, coefficients[0], multiply)
    for of_step in coefficients[1:]:
        gram_RR = multiply(step_RR, multiply(step_RR, gram_RR))
        step_RR = polynomial(gram_RR, of_step, multiply)
        whole_RR = multiply(step_RR, whole_RR)
    return multiply(whole_RR, x_RC.mT)


def polynomial(gram_RR: Tensor, coefficients: Coefficients, multiply: Multiply) -> Tensor:
    """a + b G + c G^2"""
    a, b, c = coefficients
    result_RR = multiply(gram_RR, gram_RR).mul_(c).add_(gram_RR, alpha=b)
    result_RR.diagonal(dim1=-2, dim2=-1).add_(a)
    return result_RR


def batched_product(a_NRK: Tensor, b_NCK: Tensor) -> Tensor:
    return a_NRK @ b_NCK.mT
