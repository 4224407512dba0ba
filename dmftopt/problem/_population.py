"""The population behind a sample: its spectrum, the teacher's power in it and the label noise, from observed effective ridges.

A sample covariance with eigenvalues s_i is wider than the population's, and least squares fits its noise. Ridge regression
on the sample sees through both. With a ridge z on N = n - 1 degrees of freedom (centered data),

    kappa = z / (1 - df / N),   df = sum_i s_i / (s_i + z)                                    the effective ridge,
    df / d = sum_a w_a lambda_a / (lambda_a + kappa)                                           the spectrum,
    D = (kappa / z) min_theta [mean (y - x theta)² + z |theta|²] = sigma² + sum_a P_a kappa / (lambda_a + kappa)

up to fluctuations, w_a the weight, P_a the power of the teacher field in eigenvalue lambda_a: `_POINTS` ridges give as many
equations for the weights, then for the powers, linear ones, solved by nonnegative least squares. Sources: El Karoui,
Ann. Statist. 36 (2008) 2757 (spectrum by convex optimization); Jacot et al., arXiv:2006.09796 (ridge regression sees
populations through kappa).

Sampling errors: the observations' covariance follows from what each sample contributes to them (`_covariance`), and a few
displaced observations, plus and minus one standard deviation along its largest principal directions, are estimated like the
observed ones: what is predicted for them tells the standard error of any prediction.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from .features import group_eigenvalues, split_groups

# Ridges, eigenvalues that weights are given to, and pairs of displaced observations: of the variance of a prediction the last two
# of eight held an eighth at most, and mostly less than a hundredth.
_POINTS, _ATOMS, PAIRS = 60, 60, 8
# Eigenvalues below are of directions that no run of SGD learns anything about (mean 1).
SMALLEST = 1e-5
# Weight of equations that hold exactly, of a smooth teacher, and of what only makes solutions unique.
_EXACT, _SMOOTH, _UNIQUE = 1e3, 1e-2, 1e-7
# Rows of the data at a time.
_ROWS = 4096


class Population(NamedTuple):
    """Eigenvalue groups, the teacher's scale in each, and the label noise. Of several, with a leading axis."""

    eigenvalues: np.ndarray
    weights: np.ndarray
    teacher_scale: np.ndarray
    label_noise: Any


class _Observed(NamedTuple):
    """`values`: the mean eigenvalue, then df / d and D at each of the `ridges`; `covariance`: of their sampling errors."""

    ridges: np.ndarray
    values: np.ndarray
    covariance: np.ndarray
    lowest: float
    highest: float
    dimension: int
    freedom: int

    def effective_ridges(self, trace: np.ndarray) -> np.ndarray:
        return self.ridges / (1 - trace * self.dimension / self.freedom)


def estimate(x: np.ndarray, y: np.ndarray, groups: int) -> tuple[Population, Population]:
    """The population of centered `x` (samples, d), in units that make its mean eigenvalue 1, and `y` (samples,); and `PAIRS`
    pairs of displaced ones, in the order plus, minus, plus, ..."""
    observed = _observe(x, y)
    size = np.abs(observed.values)
    variances, directions = np.linalg.eigh(observed.covariance / np.outer(size, size))
    largest = slice(None, -PAIRS - 1, -1)
    moves = (directions[:, largest] * np.sqrt(np.maximum(variances[largest], 0))).T * size
    # Of a handful of samples even impossible values lie within an error.
    low, high = 0.01 * observed.values, np.full(len(size), np.inf)
    high[1 : 1 + _POINTS] = 1.0
    displaced = [_fit(observed, np.clip(observed.values + sign * move, low, high), groups) for move in moves for sign in (1, -1)]
    return _fit(observed, observed.values, groups), Population(*(np.stack(a) for a in zip(*displaced, strict=True)))


def _observe(x: np.ndarray, y: np.ndarray) -> _Observed:
    samples, d = x.shape
    freedom = samples - 1
    s, vectors = np.linalg.eigh(x.T @ x * (d / freedom))
    s = np.maximum(s, 0.0)
    rotation = vectors * np.sqrt(d)
    projections = rotation.T @ (x.T @ y) / freedom
    z = np.geomspace(0.03 * max(s[0], SMALLEST), 10 * s[-1], _POINTS)
    resolvent = 1 / (s[:, None] + z)
    trace = np.sum(s[:, None] * resolvent, axis=0)
    left = 1 - trace / freedom
    objective = y @ y / freedom - projections**2 @ resolvent
    values = np.concatenate([[s.mean()], trace / d, objective / left])

    # What is left of a sample's leverage, on average; and d kappa / dz.
    slope = (left - z * np.sum(s[:, None] * resolvent**2, axis=0) / freedom) / left**2
    covariance = _covariance(x, y, rotation, projections, resolvent, z, left) / freedom
    covariance[-_POINTS:, -_POINTS:] *= _independence(z, z / left, slope)
    return _Observed(z, values, covariance, 0.5 * max(s[0], SMALLEST), 1.1 * s[-1], d, freedom)


def _covariance(x, y, rotation, projections, resolvent, z, left) -> np.ndarray:
    """Of what each sample contributes to the observations (up to constants), to first order, when it is left out of the rest:
    with h its leverage and e its residual then, z x (S + z)^-2 x / (1 - h) to df, and e² (1 - h) / (1 - df / N) to D (only
    the minimum itself changes with the sample, not the minimizing theta)."""
    samples, d = x.shape
    fit = projections[:, None] * resolvent
    total, square = np.zeros(1 + 2 * _POINTS), np.zeros((1 + 2 * _POINTS, 1 + 2 * _POINTS))
    for start in range(0, samples, _ROWS):
        p = x[start : start + _ROWS] @ rotation
        kept = 1 - p**2 @ resolvent / (samples - 1)
        residual = y[start : start + _ROWS, None] - p @ fit
        spectral = p**2 @ resolvent**2 * z / (d * kept)
        each = np.concatenate([np.mean(p**2, axis=1)[:, None], spectral, residual**2 / (kept * left)], axis=1)
        total, square = total + each.sum(axis=0), square + each.T @ each
    return (square - np.outer(total, total) / samples) / (samples - 1)


def _independence(z: np.ndarray, kappa: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The covariance of D at two ridges over that of its samples' contributions, (z - z') / (kappa - kappa'). Contributions are
    not independent of each other: leaving one out overstates the variance, without a ridge by n / (n - d) (Efron and Stein,
    Ann. Statist. 9 (1981) 586). For Gaussian data the covariance is 2 B² / (N (1 - gamma)) with B(kappa, kappa') =
    sigma² + sum_a P_a kappa kappa' / ((lambda_a + kappa) (lambda_a + kappa')) and gamma = (d / N) sum_a w_a lambda_a² /
    ((lambda_a + kappa) (lambda_a + kappa')), that of e² e'² is 2 (B / (1 - gamma))², and 1 - gamma is this quotient."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = (z[:, None] - z) / (kappa[:, None] - kappa)
    np.fill_diagonal(quotient, 1 / slope)
    return quotient


def _fit(observed: _Observed, values: np.ndarray, groups: int) -> Population:
    mean, trace, power = values[0], values[1 : 1 + _POINTS], values[1 + _POINTS :]
    kappa = observed.effective_ridges(trace)
    eigenvalues = spectrum(trace, kappa, mean, (observed.lowest, observed.highest), observed.dimension)
    means, counts, _ = group_eigenvalues(eigenvalues, groups)
    weights = counts / observed.dimension
    error = np.sqrt(np.diagonal(observed.covariance)[1 + _POINTS :])
    powers, noise = _teacher(means, means * weights, kappa, power, error)
    # A teacher that is not seen at all is none that a problem could hold.
    powers = np.maximum(powers, 1e-6 * power[-1] * means * weights)
    scale = np.sqrt(powers / (means * weights))
    # As many groups for every data set, so that one compiled program serves them all.
    parent, counts = split_groups(counts, min(groups, observed.dimension))
    return Population(means[parent], counts / observed.dimension, scale[parent], float(np.sqrt(noise)))


def spectrum(trace: np.ndarray, kappa: np.ndarray, mean: float, between: tuple[float, float], dimension: int) -> np.ndarray:
    """So many eigenvalues of this mean, increasing, `between` two: the means over slices of equal weight of what has this trace
    df / d at these effective ridges."""
    lowest, highest = between
    atoms = np.geomspace(lowest, highest, _ATOMS)
    exact = _EXACT * np.stack([np.ones(_ATOMS), atoms / mean])
    weights = _nonnegative(np.concatenate([atoms / (atoms + kappa[:, None]), exact]), np.append(trace, [_EXACT, _EXACT]))
    weights = weights / weights.sum()
    below = np.minimum(np.append(0.0, np.cumsum(weights)), 1.0)
    totals = np.interp(np.arange(dimension + 1) / dimension, below, np.append(0.0, np.cumsum(weights * atoms)))
    eigenvalues = np.maximum(np.diff(totals) * dimension, lowest)
    return eigenvalues * mean / eigenvalues.mean()


def _teacher(
    eigenvalues: np.ndarray, shares: np.ndarray, kappa: np.ndarray, power: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, float]:
    """Powers of the teacher field in each group, of which `shares` would be those of a teacher of one scale, and the noise's.
    Entries of neighbors are drawn together as weakly as makes up for what the data leave open: a difference as large as a
    hundred standard errors counts like a deviation of one."""
    equations = np.append(kappa[:, None] / (eigenvalues + kappa[:, None]), np.ones((len(kappa), 1)), axis=1) / error[:, None]
    ratio = np.sqrt(shares[:-1] / shares[1:])
    most = np.maximum(ratio, 1 / ratio)
    smooth = np.zeros((len(ratio), equations.shape[1]))
    pairs = np.arange(len(ratio))
    smooth[pairs, pairs], smooth[pairs, pairs + 1] = -1 / (ratio * most), ratio / most
    found = _nonnegative(
        np.concatenate([equations, _SMOOTH / error[-1] * smooth]), np.append(power / error, np.zeros(len(ratio)))
    )
    return found[:-1], float(found[-1])


def _nonnegative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with columns of unit size, and made unique."""
    size, count = np.linalg.norm(matrix, axis=0), matrix.shape[1]
    rows = np.concatenate([matrix / size, _UNIQUE * np.eye(count)])
    return nnls(rows, np.append(target, np.zeros(count)), maxiter=50 * count)[0] / size
