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

Sampling errors: half of the samples get the weight 1 + epsilon and the others 1 - epsilon, then the other way round, in a number
of such pairs (balanced repeated replication, Fay's way). Halved differences of what is predicted for the two are
epsilon sum_i s_i phi_i, with random signs s_i and what phi_i each sample contributes to first order; their squares add up to the
variance sum_i phi_i² / (1 - d / N) if epsilon^-2 = (1 - d / N) pairs. (Left out altogether, a sample of leverage h counts
1 / (1 - h) times as much, but contributions are not independent, see `_population`.) Clusters stay as they are.

Sources: El Karoui, Ann. Statist. 36 (2008) 2757 (spectrum by convex optimization); Loureiro et al., arXiv:2106.03791, and Goldt
et al., arXiv:2006.14709 (mixtures of Gaussians in place of data); Judkins, J. Off. Stat. 6 (1990) 223 (Fay's method).
"""

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from ._population import PAIRS, SMALLEST, spectrum
from .features import group_eigenvalues, split_groups

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

    def teacher(self, students: int) -> tuple[np.ndarray, np.ndarray]:
        """Scales of the columns in each group (g, C), and correlations of these and so many students', which start at 0."""
        scale = np.sqrt(np.diagonal(self.moments, axis1=1, axis2=2))
        safe, count = np.where(scale > 0, scale, 1.0), scale.shape[1]
        correlation = np.broadcast_to(np.eye(count + students), (len(scale), *[count + students] * 2)).copy()
        correlation[:, :count, :count] = self.moments / (safe[:, :, None] * safe[:, None])
        every = np.arange(count)
        correlation[:, every, every] = 1.0
        return scale, correlation


class _Fit(NamedTuple):
    """Sample means, scales² with mean 1, the samples' residuals over their scales times the roots of their weights, counts
    (sums of weights) and classes of the clusters."""

    means: np.ndarray
    squares: np.ndarray
    residuals: np.ndarray
    counts: np.ndarray
    classes: np.ndarray


class Sampled:
    """Samples as they are assigned to clusters. `x` is centered, of classes `number`; in each class are so many `clusters`, or as
    many as `chosen_clusters` says; eigenvalues come in so many `groups`; `intercept`: whether a constant is a feature too."""

    def __init__(self, x: np.ndarray, number: np.ndarray, clusters: int | None, groups: int, intercept: bool = False):
        self.x, self.number, self.groups, self.intercept = x, number, groups, intercept
        with _one_thread():
            projected = _projected(x)
            if clusters is None:
                clusters = chosen_clusters(x, projected, number)
            self.assigned = _clustered(projected, number, clusters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sampled) and all(map(np.array_equal, self._parts(), other._parts()))

    def __hash__(self) -> int:
        return hash((self.x.shape, self.groups, self.intercept, float(self.x[0, 0])))

    def _parts(self) -> tuple:
        return self.x, self.number, self.assigned, self.groups, self.intercept

    @functools.cached_property
    def mixture(self) -> Mixture:
        return self._with_weights(np.ones(len(self.x)), None)

    @functools.cached_property
    def displaced(self) -> list[Mixture]:
        """In the order plus, minus, plus, ..., in the units of `mixture`."""
        rng, (samples, d) = np.random.default_rng(0), self.x.shape
        epsilon = (PAIRS * (1 - d / (samples - self.assigned.max() - 1))) ** -0.5
        signs = (rng.permuted(np.arange(samples) % 2) * 2 - 1 for _ in range(PAIRS))
        weights = (1 + sign * epsilon * own for own in signs for sign in (1, -1))
        return [self._with_weights(w * samples / w.sum(), self.mixture.mean_square_norm) for w in weights]

    def _with_weights(self, weights: np.ndarray, mean_square_norm: float | None) -> Mixture:
        with _one_thread():
            found = _mixture(_fit(self.x, self.number, self.assigned, weights), self.groups, mean_square_norm)
        return with_intercept(found, self.x.shape[1]) if self.intercept else found


def _mixture(fit: _Fit, groups: int, mean_square_norm: float | None) -> Mixture:
    """In units of this mean square norm, None for its own."""
    samples, d = fit.residuals.shape
    freedom = samples - len(fit.counts)
    covariance = fit.residuals.T @ fit.residuals / freedom
    if mean_square_norm is None:
        mean_square_norm = float(np.trace(covariance))
    unit = d / mean_square_norm
    s, vectors = np.linalg.eigh(covariance * unit)
    # Clusters may explain a direction altogether.
    s = np.maximum(s, SMALLEST)
    z = np.geomspace(0.03 * s[0], 10 * s[-1], _RIDGES)
    trace = np.sum(s / (s + z[:, None]), axis=1)
    kappa = z / (1 - trace / freedom)
    values = spectrum(trace / d, kappa, float(s.mean()), (0.5 * s[0], 1.1 * s[-1]), d)
    means, counts, member = group_eigenvalues(values, groups)
    gram = _gram(fit, fit.means @ vectors * np.sqrt(unit), s, z, kappa, freedom, means, member)
    moments = gram * (d / (counts * means**2))[:, None, None]
    # As many groups for every data set, so that one compiled program serves them all.
    parent, counts = split_groups(counts, min(groups, d))
    weights = fit.counts / samples
    return Mixture(fit.classes, weights, np.sqrt(fit.squares), means[parent], counts / d, moments[parent], mean_square_norm)


def with_intercept(mixture: Mixture, dimension: int) -> Mixture:
    """With a constant feature 1 beside the `dimension` others. In units of E‖x - mu‖² = 1 it is a = (mean square norm)^(-1/2),
    and moves all fields alike, at the rate - eta d a² E[l]: a coordinate, 1 of d, in which all means are equal and hardly
    anything is Gaussian."""
    speed = dimension / mixture.mean_square_norm
    if speed > 30:
        raise ValueError(
            f"intercept: with features of mean square {1 / speed:.2g} within clusters it learns {speed:.0f} times as fast "
            "as they do, which the time steps of the theory would not resolve. Scale the features to unit variance within "
            "clusters, or leave the intercept out."
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
    fit = _fit(x[train], number[train], _clustered(projected[train], number[train], clusters), np.ones(len(train)))
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


def _fit(x: np.ndarray, number: np.ndarray, assigned: np.ndarray, weights: np.ndarray) -> _Fit:
    """`weights` of the samples, of mean 1."""
    indicators = (assigned[None] == np.arange(assigned.max() + 1)[:, None]).astype(float)
    alone = 1 - 1 / indicators.sum(axis=1)
    indicators = indicators * weights
    counts = indicators.sum(axis=1)
    means = indicators @ x / counts[:, None]
    residuals = x - means[assigned]
    squares = indicators @ np.sum(residuals**2, axis=1) / (counts * alone)
    # Samples that are all equal have no scale, but a place.
    squares = np.maximum(squares, 1e-6 * squares.max())
    squares = squares * len(x) / np.sum(counts * squares)
    classes = np.zeros(len(counts), dtype=int)
    classes[assigned] = number
    return _Fit(means, squares, residuals * np.sqrt(weights / squares[assigned])[:, None], counts, classes)


def _gram(fit: _Fit, means, s, z, kappa, freedom: int, eigenvalues, member) -> np.ndarray:
    """The means' Gram matrix in each group. `means` in the sample's eigenvectors. Clusters count by their probabilities, in which
    the noise of all means is alike."""
    root = np.sqrt(fit.counts / fit.counts.sum())
    means = root[:, None] * means
    # Means are those of centered samples: along `root` there is neither a mean nor noise. Were noise taken away there, the trace
    # would lack it, and the means would be too small.
    centered = np.eye(len(root)) - np.outer(root, root)
    noise = centered @ np.diag(fit.squares / fit.counts.sum()) @ centered
    target = np.stack([(means * (ridge / (s + ridge))) @ means.T for ridge in z])
    target -= (freedom * (kappa - z))[:, None, None] * noise
    # Start: of the sample's eigenvectors in turn, those that the groups are made of.
    start = np.stack([means[:, member == a] @ means[:, member == a].T for a in range(len(eigenvalues))])
    start -= np.bincount(member, weights=s)[:, None, None] * noise
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


def _one_thread() -> Any:
    """Factorizations of thousands of small matrices, which threads that wait for each other slow down a hundredfold."""
    return _imported("threadpoolctl").threadpool_limits(limits=1)


def _sklearn(module: str) -> Any:
    return _imported(f"sklearn.{module}")


def _imported(module: str) -> Any:
    """Of scikit-learn and what comes with it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            'loss: classes are found with scikit-learn, which is not installed. Install it by pip install "dmftopt[data]".'
        ) from error
