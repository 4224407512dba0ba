"""What real data look like to the theory: spectrum, teacher power and label noise."""

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._checks import Aside, check_count, check_member
from ._mixture_data import Mixture, Sampled
from ._population import Population, estimate
from ._table import as_classes, as_matrix, as_vector, centered, check_independent
from .features import group_eigenvalues, split_groups

# Relative spread of the columns' variances, and of what columns share, that Adam would hardly notice (rates go with the root).
_EVEN = 0.25


class DataMap(Aside):
    """The way back to raw data.

    SGD on raw features less `feature_center` (d,) and labels less `label_center`, with learning rate `learning_rate / c` and
    ridge `ridge * c` (weight decay `ridge * c / dimension` per step), c = `mean_square_norm`, is SGD in the problem's units;
    time t is step / `dimension`. No route reads it: problems that differ in it share their compiled programs.

    `displaced`: what `Problem.replicates` puts in place of the estimated population; None if that is the sample. `samples`: of a
    classification, the data themselves, from which replicates are made when they are asked for; and `classes`: what the labels 0,
    1, ... (for two classes -1 and 1) are called in the data. None for a regression. For classes c is the mean square norm
    within the clusters, and labels are not centered.
    """

    feature_center: Float[np.ndarray, " d"]
    label_center: float
    mean_square_norm: float
    train_size: int = eqx.field(static=True)
    displaced: Population | None = None
    classes: tuple[Any, ...] | None = eqx.field(static=True, default=None)
    samples: Sampled | None = eqx.field(static=True, default=None)

    @property
    def estimated(self) -> bool:
        """Whether the sampling error of the data is known."""
        return self.displaced is not None or self.samples is not None

    def centered(self, features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        """As `Problem.centered`, of classes their numbers 0, 1, ..."""
        x = as_matrix("features", features)
        if x.shape[1] != self.dimension:
            raise ValueError(f"features must have the {self.dimension} columns that the problem was made of, got {x.shape[1]}.")
        x = x - self.feature_center
        if self.samples is not None and self.samples.intercept:
            x = np.append(x, np.ones((len(x), 1)), axis=1)
        if self.classes is None:
            return x, as_vector("labels", labels) - self.label_center
        number, names = as_classes("labels", labels)
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(f"labels: the classes {unknown} are not among those that the problem was made of.")
        return x, np.asarray([self.classes.index(name) for name in names], dtype=float)[number]

    def others(self) -> list[Population] | list[Mixture]:
        """The displaced populations, in the order plus, minus, plus, ..."""
        if self.samples is not None:
            return self.samples.displaced
        return [] if self.displaced is None else [Population(*each) for each in zip(*self.displaced, strict=True)]

    @property
    def dimension(self) -> int:
        return self.feature_center.shape[-1]


class Description(NamedTuple):
    population: Population
    delta: float
    basis: str
    map: DataMap


# Samples per dimension, and more than dimensions, from which teacher and noise can be told apart.
_FEWEST, _MORE = 1.2, 2


def describe(features: Any, labels: Any, *, train_size: int, groups: int, population: str) -> Description:
    """Estimate the least-squares problem that `features` (samples, d) and `labels` (samples,) pose. See Problem.from_data."""
    x, y = as_matrix("features", features), as_vector("labels", labels)
    samples, d = x.shape
    if y.shape != (samples,):
        raise ValueError(f"labels must have shape ({samples},) like the rows of features, got {y.shape}.")
    check_count("train_size", train_size)
    check_count("groups", groups)
    if train_size > samples:
        raise ValueError(f"train_size must be at most the {samples} samples given, got {train_size}.")
    check_member("population", population, ("estimate", "sample"))
    if samples < _FEWEST * d + _MORE:
        raise ValueError(
            f"features has {samples} samples in {d} dimensions; at least {_FEWEST} per dimension, and {_MORE} more, are needed "
            "to tell a teacher from noise. Give more samples or project to fewer features."
        )
    x, center = centered("features", x)
    label_center = float(y.mean())
    y = y - label_center
    if np.ptp(y) == 0:
        raise ValueError("labels are all equal: there is nothing to learn. Check the labels.")

    covariance_values, vectors = np.linalg.eigh(x.T @ x / samples)
    check_independent("features", covariance_values)
    mean_square_norm = float(covariance_values.sum())
    if population == "estimate":
        # The units of the mean square norm, as that of the population is estimated: with samples - 1.
        found, displaced = estimate(x / np.sqrt(mean_square_norm * samples / (samples - 1)), y, groups)
    else:
        found, displaced = _of_sample(x, y, covariance_values, vectors, groups), None
    return Description(
        population=found,
        delta=train_size / d,
        basis=_basis(x),
        map=DataMap(center, label_center, mean_square_norm, int(train_size), displaced),
    )


def _of_sample(x: np.ndarray, y: np.ndarray, covariance_values: np.ndarray, vectors: np.ndarray, groups: int) -> Population:
    """The sample as if it were the population, with its least-squares fit for the teacher."""
    samples, d = x.shape
    mean_square_norm = covariance_values.sum()
    eigenvalues = covariance_values * d / mean_square_norm
    # In problem units x' = x / sqrt(mean_square_norm), of covariance eigenvalues / d.
    projections = vectors.T @ (x.T @ y) / samples / np.sqrt(mean_square_norm)
    teacher = projections / (eigenvalues / d)
    explained = float(np.sum(projections * teacher))
    variance = max(float(np.mean(y**2)) - explained, 0.0) * samples / (samples - d - 1)
    # The fit's own variance along each eigenvector, sigma² / (samples * eigenvalue), inflates its power.
    power = teacher**2 - variance / (samples * eigenvalues / d)

    means, counts, labels_of = group_eigenvalues(eigenvalues, groups)
    # Weighted by eigenvalue, so that the power of the teacher field is kept; a group whose estimate is below its own
    # noise shows no teacher at all.
    group_power = np.bincount(labels_of, weights=eigenvalues * power) / (counts * means)
    teacher_scale = np.sqrt(np.maximum(group_power, 0.0))
    # As many groups for every data set, so that one compiled program serves them all.
    parent, counts = split_groups(counts, min(groups, d))
    return Population(means[parent], counts / d, teacher_scale[parent], float(np.sqrt(variance)))


class ClassDescription(NamedTuple):
    """What `describe` is for numbers, for classes: the labels of the clusters are those of a task with `columns`."""

    mixture: Mixture
    labels: np.ndarray
    columns: int
    delta: float
    basis: str
    map: DataMap


def describe_classes(
    features: Any, labels: Any, *, train_size: int, groups: int, per_class: bool, clusters: int | None, intercept: bool
) -> ClassDescription:
    """Estimate the mixture that `features` (samples, d) and `labels` (samples,) show. See Problem.from_data."""
    x = as_matrix("features", features)
    number, classes = as_classes("labels", labels)
    samples, d = x.shape
    if number.shape != (samples,):
        raise ValueError(f"labels must have shape ({samples},) like the rows of features, got {number.shape}.")
    if not per_class and len(classes) > 2:
        raise ValueError(f'labels has {len(classes)} classes. Use loss="softmax", or labels of one class against the others.')
    check_count("train_size", train_size)
    check_count("groups", groups)
    if clusters is not None:
        check_count("clusters", clusters)
    if train_size > samples:
        raise ValueError(f"train_size must be at most the {samples} samples given, got {train_size}.")
    if samples < 2 * d:
        raise ValueError(
            f"features has {samples} samples in {d} dimensions; at least 2 per dimension are needed to estimate a covariance. "
            "Give more samples or project to fewer features."
        )
    rare = np.argmin(np.bincount(number))
    if np.bincount(number)[rare] < 4:
        raise ValueError(f"labels: class {classes[rare]!r} has fewer than 4 samples. Drop it, or join it with another.")
    x, center = centered("features", x)
    check_independent("features", np.linalg.eigvalsh(x.T @ x / samples))
    sampled = Sampled(x, number, clusters, groups, intercept)
    mixture = sampled.mixture
    # What is constant has no variance by which Adam could divide.
    basis = "mixed" if intercept else _basis(x)
    own = mixture.classes.astype(float)
    return ClassDescription(
        mixture,
        own if per_class else 2 * own - 1,
        len(classes) if per_class else 1,
        train_size / d,
        basis,
        DataMap(center, 0.0, mixture.mean_square_norm, int(train_size), classes=classes, samples=sampled),
    )


def _basis(x: np.ndarray) -> str:
    """Of centered features, see `Problem.basis`: what the columns' variances are to the eigenvalues."""
    covariance = x.T @ x / x.shape[0]
    variances = np.diagonal(covariance)
    shared = np.sum(covariance**2) - np.sum(variances**2)
    # What sampling alone would make of independent columns.
    sampling = (variances.sum() ** 2 - np.sum(variances**2)) / x.shape[0]
    if variances.std() < _EVEN * variances.mean():
        return "rotated"
    return "aligned" if shared - sampling < _EVEN**2 * np.sum(variances**2) else "mixed"
