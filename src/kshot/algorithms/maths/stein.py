"""Stein variational gradient descent: particles that go where a density is high, and keep apart.

Shapes: B problems, M particles, P numbers of a particle.
"""

import math

import torch
from torch import Tensor

_SMALLEST = 1e-12  # of a bandwidth: all particles may be one


def stein_direction(particles: Tensor, gradients: Tensor) -> Tensor:
    """(B, M, P): the direction of each particle, from the gradients of the log-density there, both (B, M, P).

    Liu and Wang, "Stein Variational Gradient Descent", 2016, equation 8, with the radial kernel of section 5, whose
    bandwidth is the median of the squared distances by the logarithm of M. Deviations: distances of a particle to
    itself are left out of the median, M + 1 stands for M, and the bandwidth is a constant to derivatives.
    """
    n_particles = particles.shape[1]
    if n_particles == 1:
        return gradients
    apart = particles[:, :, None] - particles[:, None]  # (B, M, M, P): the first minus the second
    squared = apart.square().sum(3)
    first, second = torch.triu_indices(n_particles, n_particles, offset=1, device=particles.device)
    median = squared.detach()[:, first, second].median(dim=1).values
    bandwidth = (median / math.log(n_particles + 1)).clamp_min(_SMALLEST)[:, None, None]
    kernel = torch.exp(-squared / bandwidth)
    attraction = kernel @ gradients
    repulsion = (2 / bandwidth * kernel)[..., None] * apart
    return (attraction + repulsion.sum(2)) / n_particles
