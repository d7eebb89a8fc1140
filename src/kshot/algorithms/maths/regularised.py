"""Least squares with a penalty.

Shapes: B episodes, S rows, N right-hand sides, D features.
"""

import torch
from torch import Tensor


def times_inverse(right: Tensor, rows: Tensor, penalty: Tensor) -> Tensor:
    """`right` (X'X + penalty I)^-1, (B, N, D), of right (B, N, D), X = rows (B, S, D) and penalty (B,) above 0.

    Solves D equations or S, whichever are fewer: by the Woodbury identity the inverse is
    (I - X' (XX' + penalty I)^-1 X) / penalty. In float64, for with a small penalty they are close to singular.
    """
    x, r, least = rows.double(), right.double(), penalty.double()[:, None, None]
    n_rows, n_features = rows.shape[1:]
    fewer = x.transpose(1, 2) @ x if n_features <= n_rows else x @ x.transpose(1, 2)
    system = fewer + least * torch.eye(len(fewer[0]), dtype=x.dtype, device=x.device)
    solved: Tensor
    if n_features <= n_rows:
        solved = _solved(system, r.transpose(1, 2)).transpose(1, 2)
    else:
        along = r @ x.transpose(1, 2)  # (B, N, S)
        solved = (r - _solved(system, along.transpose(1, 2)).transpose(1, 2) @ x) / least
    return solved.to(right.dtype)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """By LU. Without a look at whether the system was singular, for which a host would wait for its device."""
    solution: Tensor = torch.linalg.solve_ex(system, right).result
    return solution
