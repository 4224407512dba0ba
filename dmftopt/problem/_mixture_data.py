"""Classes of real data as a Gaussian mixture: clusters within the classes, each with a mean and a scale, and one covariance.

A sample of cluster c is mu_c + scale_c N(0, Lambda / d). With n samples in C clusters, of which n_c are in c, everything is
estimated from the sample means m_c and the pooled covariance S of the residuals over their scales, on N = n - C degrees of
freedom. In units of mean eigenvalue 1:

* Scales from the residuals' mean squares over 1 - 1 / n_c.
* The population's spectrum from S, by its effective ridge kappa at a ridge z, for some sixty z:

      kappa = z / (1 - df / N) ,    df = sum_i s_i / (s_i + z) ,    df / d = sum_a w_a lambda_a / (lambda_a + kappa)

  nonnegative least squares for the weights w_a.
* The means' Gram matrix G_a in eigenvalue group a, less what the m_c hold of noise, scale_c² Lambda / n_c:

      z m_b (S + z)^-1 m_c - 1[b=c] scale_c² N (kappa - z) / n_c = sum_a G_a[b, c] kappa / (lambda_a + kappa)

  least squares over positive semidefinite matrices, from what the sample's own eigenvectors say.

Sources: El Karoui, Ann. Statist. 36 (2008) 2757 (spectrum by convex optimization); Loureiro et al., arXiv:2106.03791, and Goldt
et al., arXiv:2006.14709 (mixtures of Gaussians in place of data).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from ._population import spectrum
from .features import group_eigenvalues

_RIDGES = 60
# Steps of the fit of the means. More follow the noise of what the data hardly show.
_STEPS = 100
# Directions in which clusters are looked for, and samples that their number is chosen by.
_DIRECTIONS, _CHOSEN_BY = 50, 4096
_INTERCEPT_EIGENVALUE = 1e-4


class Mixture(NamedTuple):
    """Of C clusters and g eigenvalue groups: the class of each cluster (C,), its probability and scale (C,); eigenvalues and
    weights of the groups (g,), of mean 1; second moments of the teacher's columns in each group (g, C, C); and E‖x - mu‖²."""

    classes: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    eigenvalues: np.ndarray
    shares: np.ndarray
    moments: np.ndarray
    mean_square_norm: float


class _Fit(NamedTuple):
    """Sample means, scales² with mean 1, the samples' residuals over their scales, counts and classes of the clusters."""

    means: np.ndarray
    squares: np.ndarray
    residuals: np.ndarray
    counts: np.ndarray
    classes: np.ndarray


def estimate_mixture(x: np.ndarray, number: np.ndarray, clusters: int | None, groups: int) -> Mixture:
    """The mixture behind centered `x` (samples, d) of classes `number`, with so many `clusters` in each class, or as many as
    `chosen_clusters` says."""
    samples, d = x.shape
    projected = _projected(x)
    if clusters is None:
        clusters = chosen_clusters(x, projected, number)
    fit = _fit(x, number, _clustered(projected, number, clusters))
    freedom = samples - len(fit.counts)
    covariance = fit.residuals.T @ fit.residuals / freedom
    mean_square_norm = float(np.trace(covariance))
    unit = d / mean_square_norm
    s, vectors = np.linalg.eigh(covariance * unit)
    z = np.geomspace(0.03 * s[0], 10 * s[-1], _RIDGES)
    trace = np.sum(s / (s + z[:, None]), axis=1)
    kappa = z / (1 - trace / freedom)
    means, counts, member = group_eigenvalues(spectrum(trace / d, kappa, 1.0, (0.5 * s[0], 1.1 * s[-1]), d), groups)
    gram = _gram(fit, fit.means @ vectors * np.sqrt(unit), s, z, kappa, freedom, means, member)
    return Mixture(
        fit.classes,
        fit.counts / samples,
        np.sqrt(fit.squares),
        means,
        counts / d,
        gram * (d / (counts * means**2))[:, None, None],
        mean_square_norm,
    )


def with_intercept(mixture: Mixture, dimension: int) -> Mixture:
    """With a constant feature 1 beside the `dimension` others. In units of E‖x - mu‖² = 1 it is a = (mean square norm)^(-1/2),
    and moves all fields alike, at the rate - eta d a² E[l]: a coordinate, 1 of d, in which all means are equal and hardly
    anything is Gaussian."""
    speed = dimension / mixture.mean_square_norm
    if speed > 30:
        raise ValueError(
            f"intercept: with features of mean square {1 / speed:.2g} within clusters it learns {speed:.0f} times as fast "
            "as they do, which the time steps of the theory would not resolve. Scale the features to unit variance."
        )
    share, eigenvalue = 1 / dimension, _INTERCEPT_EIGENVALUE * speed
    rest = 1 - share
    moments = np.full((1, *mixture.moments.shape[1:]), speed / (share * eigenvalue**2))
    return mixture._replace(
        eigenvalues=np.append(mixture.eigenvalues / rest, eigenvalue),
        shares=np.append(mixture.shares * rest, share),
        # What means say of fields is share * eigenvalue² * moments.
        moments=np.concatenate([mixture.moments * rest, moments]),
    )


def chosen_clusters(x: np.ndarray, projected: np.ndarray, number: np.ndarray) -> int:
    """How many clusters a class: the power of 2 from which on twice as many make samples that the mixture was not fitted to less
    likely, given their class."""
    order = np.random.default_rng(0).permutation(len(x))[:_CHOSEN_BY]
    halves = order[::2], order[1::2]
    best, found, clusters = 1, -np.inf, 1
    while 4 * clusters <= np.min(np.bincount(number[order])):
        likelihood = sum(_held_out(x, projected, number, clusters, *both) for both in (halves, halves[::-1]))
        if likelihood <= found:
            break
        best, found, clusters = clusters, likelihood, 2 * clusters
    return best


def _held_out(x, projected, number, clusters: int, train: np.ndarray, test: np.ndarray) -> float:
    """Mean log likelihood of the test samples, up to a constant, under the mixture fitted to the others."""
    d = x.shape[1]
    fit = _fit(x[train], number[train], _clustered(projected[train], number[train], clusters))
    covariance = _shrunk(fit.residuals, len(train) - len(fit.counts))
    root = np.linalg.cholesky(covariance)
    white, centers = (solve_triangular(root, a.T, lower=True).T for a in (x[test], fit.means))
    distances = np.sum(white**2, axis=1)[:, None] - 2 * white @ centers.T + np.sum(centers**2, axis=1)
    of_class = np.bincount(number[train])[fit.classes]
    terms = np.log(fit.counts / of_class) - 0.5 * d * np.log(fit.squares) - 0.5 * distances / fit.squares
    terms[number[test][:, None] != fit.classes] = -np.inf
    return float(np.mean(logsumexp(terms, axis=1)) - np.sum(np.log(np.diagonal(root))))


def _shrunk(residuals: np.ndarray, freedom: int) -> np.ndarray:
    """Ledoit and Wolf's covariance, J. Multivar. Anal. 88 (2004) 365."""
    shrinkage = _sklearn("covariance").ledoit_wolf_shrinkage(residuals, assume_centered=True)
    covariance = residuals.T @ residuals / freedom
    mean = np.trace(covariance) / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))


def _projected(x: np.ndarray) -> np.ndarray:
    """On the principal directions, in which clusters are looked for."""
    _, vectors = np.linalg.eigh(x.T @ x / len(x))
    return x @ vectors[:, : -_DIRECTIONS - 1 : -1]


def _clustered(projected: np.ndarray, number: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each sample, by k-means within the classes; in each at least two samples."""
    kmeans, assigned, count = _sklearn("cluster").KMeans, np.zeros(len(number), dtype=int), 0
    for k in range(number.max() + 1):
        own = np.flatnonzero(number == k)
        wanted = min(clusters, max(len(own) // 2, 1))
        with warnings.catch_warnings():
            # Fewer distinct samples than clusters: there will be fewer clusters.
            warnings.simplefilter("ignore")
            found = kmeans(wanted, n_init=2, random_state=0).fit(projected[own])
        labels, distances = found.labels_, found.transform(projected[own])
        alone = np.bincount(labels, minlength=wanted) < 2
        distances[:, alone] = np.inf
        labels = labels if np.all(alone) else np.argmin(distances, axis=1)
        _, labels = np.unique(labels, return_inverse=True)
        assigned[own] = count + labels
        count += labels.max() + 1
    return assigned


def _fit(x: np.ndarray, number: np.ndarray, assigned: np.ndarray) -> _Fit:
    counts = np.bincount(assigned)
    indicators = (assigned[None] == np.arange(len(counts))[:, None]).astype(float)
    means = indicators @ x / counts[:, None]
    residuals = x - means[assigned]
    squares = indicators @ np.sum(residuals**2, axis=1) / (counts - 1)
    # Samples that are all equal have no scale, but a place.
    squares = np.maximum(squares, 1e-6 * squares.max())
    squares = squares * len(x) / np.sum(counts * squares)
    classes = np.zeros(len(counts), dtype=int)
    classes[assigned] = number
    return _Fit(means, squares, residuals / np.sqrt(squares[assigned])[:, None], counts, classes)


def _gram(fit: _Fit, means, s, z, kappa, freedom: int, eigenvalues, member) -> np.ndarray:
    """The means' Gram matrix in each group. `means` in the sample's eigenvectors. Clusters count by their probabilities, in which
    the noise of all means is alike."""
    root = np.sqrt(fit.counts / fit.counts.sum())
    means = root[:, None] * means
    noise = fit.squares / fit.counts.sum()
    diagonal = np.arange(len(noise))
    target = np.stack([(means * (ridge / (s + ridge))) @ means.T for ridge in z])
    target[:, diagonal, diagonal] -= noise * (freedom * (kappa - z))[:, None]
    # Start: of the sample's eigenvectors in turn, those that the groups are made of.
    start = np.stack([means[:, member == a] @ means[:, member == a].T for a in range(len(eigenvalues))])
    start[:, diagonal, diagonal] -= noise * np.bincount(member, weights=s)[:, None]
    # Of a mean's noise, a ridge's share has this deviation.
    deviation = np.sqrt(np.sum((s * z[:, None] / (s + z[:, None])) ** 2, axis=1))
    kernel = kappa[:, None] / (eigenvalues + kappa[:, None]) / deviation[:, None]
    gram = _semidefinite_least_squares(kernel, target / deviation[:, None, None], start)
    return gram / (root[:, None] * root)


def _semidefinite_least_squares(kernel: np.ndarray, target: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Matrices (group, n, n), positive semidefinite, with sum_a kernel[z, a] matrix_a near target_z: accelerated projected
    gradient descent from `start`, as far as the data are worth."""
    size = np.linalg.norm(kernel, axis=0)
    kernel = kernel / size
    matrix = before = _semidefinite(start * size[:, None, None])
    rate, pull = 1 / np.linalg.norm(kernel, 2) ** 2, np.einsum("za,zij->aij", kernel, target)
    normal = kernel.T @ kernel
    for k in range(_STEPS):
        ahead = matrix + k / (k + 3) * (matrix - before)
        before, matrix = matrix, _semidefinite(ahead - rate * (np.tensordot(normal, ahead, 1) - pull))
    return matrix / size[:, None, None]


def _semidefinite(matrices: np.ndarray) -> np.ndarray:
    """The nearest positive semidefinite matrix of the same trace, if that is not negative: eigenvalues are projected onto a
    simplex. Cut off at 0, they would keep the noise that happens to be positive."""
    values, vectors = np.linalg.eigh(0.5 * (matrices + np.swapaxes(matrices, 1, 2)))
    descending = values[:, ::-1]
    excess = np.cumsum(descending, axis=1) - np.maximum(values.sum(axis=1), 0.0)[:, None]
    level = excess / np.arange(1, values.shape[1] + 1)
    last = np.maximum(np.sum(descending > level, axis=1) - 1, 0)
    values = np.maximum(values - level[np.arange(len(level)), last][:, None], 0.0)
    return (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)


def _sklearn(module: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            'loss: classes are found with scikit-learn, which is not installed. Install it by pip install "dmftopt[data]".'
        ) from error
