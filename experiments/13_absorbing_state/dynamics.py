"""Spheres in a periodic cube that move only while they overlap: stochastic gradient descent and biased random organization.

Zhang & Martiniani, Absorbing state dynamics of stochastic gradient descent, arXiv:2411.11834. The unit of length is the diameter
2R, that of energy a: two spheres whose centers are r < 1 apart have the energy V(r) = (1 - r)^m / m. Each step, from the
same configuration (synchronously), every overlapping pair pushes its two particles apart along its axis by

- `BRO`: one kick of size U(0, epsilon) for both (reciprocal), or one for each of them;
- `PairwiseSGD`: learning_rate |V'(r)| if the pair is kept, which has probability p;
- `ParticlewiseSGD`: learning_rate |V'(r)|, given to particles that are selected, which has probability p.

A particle in several overlaps gets the sum. |V'| = (1 - r)^(m - 1), so for m = 1 kicks do not depend on r. A learning rate is in
units of (2R)^2 / a. A configuration without overlaps is absorbing.
"""

import dataclasses
import itertools
from typing import Protocol

import numpy as np
from scipy.spatial import KDTree


class Dynamics(Protocol):
    def kicks(self, rng: np.random.Generator, first, second, distance, particles: int) -> tuple[np.ndarray, np.ndarray]:
        """How far the first and the second particle of each overlapping pair are pushed, away from each other."""
        ...


@dataclasses.dataclass(frozen=True)
class BRO:
    epsilon: float
    """Largest kick, in diameters."""
    reciprocal: bool = True

    def __post_init__(self):
        _check(0 < self.epsilon < np.inf, "epsilon", self.epsilon, "positive and finite")

    def kicks(self, rng, first, second, distance, particles):
        size = self.epsilon * rng.random((1 if self.reciprocal else 2, len(distance)))
        return size[0], size[-1]


@dataclasses.dataclass(frozen=True)
class _SGD:
    learning_rate: float
    p: float
    m: float = 1.0

    def __post_init__(self):
        _check(0 < self.learning_rate < np.inf, "learning_rate", self.learning_rate, "positive and finite")
        _check(0 < self.p <= 1, "p", self.p, "in (0, 1]")
        _check(1 <= self.m < np.inf, "m", self.m, "at least 1: below, the force is infinite where spheres touch")


class PairwiseSGD(_SGD):
    def kicks(self, rng, first, second, distance, particles):
        size = self.learning_rate * slope(distance, self.m) * (rng.random(len(distance)) < self.p)
        return size, size


class ParticlewiseSGD(_SGD):
    def kicks(self, rng, first, second, distance, particles):
        size, selected = self.learning_rate * slope(distance, self.m), rng.random(particles) < self.p
        return size * selected[first], size * selected[second]


def matched(epsilon: float, p: float, sgd: type[PairwiseSGD] | type[ParticlewiseSGD] = PairwiseSGD):
    """SGD (m = 1) with the mean kick of BRO(epsilon): p learning_rate = epsilon / 2.

    Its variance is p (1 - p) learning_rate^2, that of U(0, epsilon) is epsilon^2 / 12: they are the same at p = 3/4 only, where
    learning_rate = 2 epsilon / 3."""
    _check(0 < p <= 1, "p", p, "in (0, 1]")
    return sgd(epsilon / (2 * p), p)


def potential(distance, m: float = 1.0):
    """V(r) = (1 - r)^m / m for r < 1, otherwise 0; in units of a."""
    return np.maximum(1 - np.asarray(distance), 0.0) ** m / m


def slope(distance, m: float = 1.0):
    """-dV/dr of overlapping pairs, r < 1."""
    return np.ones_like(distance) if m == 1 else (1 - distance) ** (m - 1)


class Spheres:
    """A configuration, with the pairs near enough to overlap soon.

    `positions`: (particle, axis), anywhere: they are taken modulo the cube. The list of pairs, those within 1 + skin, comes from
    a k-d tree and holds while no particle has moved by half a skin: then its pairs, and those of the others that moved almost as
    far, are replaced. Each step only pairs of which a particle has just moved are measured, near the absorbing state a few."""

    def __init__(self, positions, phi: float, skin: float = 0.3):
        positions = np.array(positions, dtype=float)
        _check(positions.ndim == 2 and positions.shape[1] == 3, "positions", positions.shape, "of shape (particles, 3)")
        _check(bool(np.isfinite(positions).all()), "positions", "infinite or NaN", "finite")
        _check(0 < skin < np.inf, "skin", skin, "positive and finite")
        self.phi, self.skin, self.box = phi, skin, box(len(positions), phi)
        # Else two particles could be near each other twice, through the boundary too.
        enough = 2 * (1 + skin)
        _check(self.box > enough, "box", f"{self.box:.3g} diameters wide", f"more than {enough:.3g}: take more particles")
        # (axis, particle): numpy gathers from one axis at a time several times as fast.
        self._x = np.ascontiguousarray(positions.T)
        self._reference = self._x.copy()
        self._first = self._second = np.empty(0, dtype=int)
        self._image, self._squared = np.empty((3, 0)), np.empty(0)
        self._renew(np.arange(len(positions)))

    def __len__(self):
        return self._x.shape[1]

    @classmethod
    def random(cls, rng: np.random.Generator, particles: int, phi: float, skin: float = 0.3) -> "Spheres":
        """Uniformly random positions."""
        return cls(rng.random((particles, 3)) * box(particles, phi), phi, skin)

    @property
    def positions(self) -> np.ndarray:
        """(particle, axis), within a skin of the cube [0, box)^3."""
        return self._x.T.copy()

    @property
    def overlaps(self):
        """Of every overlapping pair the first and the second particle, the vector to the first (axis, pair), the distance."""
        over = np.flatnonzero(self._squared < 1)
        return self._first[over], self._second[over], self._separation(over), np.sqrt(self._squared[over])

    @property
    def activity(self) -> float:
        """The fraction of particles that overlap with another."""
        first, second, _, _ = self.overlaps
        return self._members(first, second).mean()

    def energy(self, m: float = 1.0) -> float:
        """Per particle, in units of a."""
        return potential(self.overlaps[3], m).sum() / len(self)

    def step(self, dynamics: Dynamics, rng: np.random.Generator) -> float:
        """One synchronous step. The activity before it; once that is zero nothing moves any more."""
        first, second, axis, distance = self.overlaps
        if not len(first):
            return 0.0
        n = len(self)
        kick, other = dynamics.kicks(rng, first, second, distance, n)
        # Where two centers coincide there is no axis, and the pair stays.
        axis /= np.maximum(distance, 1e-300)
        particles, pushes = np.concatenate([first, second]), np.concatenate([axis * kick, axis * -other], axis=1)
        for x, push in zip(self._x, pushes, strict=True):
            x += np.bincount(particles, push, n)
        active = self._members(first, second)
        moved = np.flatnonzero(active)
        touched = np.flatnonzero(active.take(self._first) | active.take(self._second))
        # All at once is faster than many by their indices.
        self._measure(touched if 2 * len(touched) < len(self._first) else slice(None))
        strayed = sum((x.take(moved) - r.take(moved)) ** 2 for x, r in zip(self._x, self._reference, strict=True))
        if np.max(strayed) > (self.skin / 2) ** 2:
            self._renew(moved[strayed > (self.skin / 4) ** 2])
        return len(moved) / n

    def _separation(self, pairs):
        first, second = self._first[pairs], self._second[pairs]
        return np.stack([x.take(first) - x.take(second) - i[pairs] for x, i in zip(self._x, self._image, strict=True)])

    def _measure(self, pairs):
        x, y, z = self._separation(pairs)
        self._squared[pairs] = x * x + y * y + z * z

    def _renew(self, particles):
        """Replace all pairs of these particles."""
        n = len(self)
        # Not so few: then all, by the tree's own search for pairs.
        if few := len(particles) < n / 3:
            wrapped = self._x[:, particles] % self.box
        else:
            particles, wrapped = np.arange(n), self._x % self.box
        # For tiny negative x it is box.
        wrapped[wrapped >= self.box] = 0.0
        self._x[:, particles] = self._reference[:, particles] = wrapped
        tree = KDTree(self._reference.T, boxsize=self.box, compact_nodes=False, balanced_tree=False)
        within = 1 + self.skin
        if few:
            near = tree.query_ball_point(wrapped.T, within, return_sorted=False)
            first = np.repeat(particles, [len(i) for i in near])
            second = np.fromiter(itertools.chain.from_iterable(near), dtype=int, count=len(first))
            renewed = self._members(particles, particles)
            # Two renewed particles find each other: one pair.
            once = ~renewed[second] | (first < second)
            first, second = first[once], second[once]
            kept = np.flatnonzero(~(renewed.take(self._first) | renewed.take(self._second)))
        else:
            first, second = tree.query_pairs(within, output_type="ndarray").T
            kept = np.empty(0, dtype=int)
        image = self.box * np.rint((self._reference[:, first] - self._reference[:, second]) / self.box)
        self._first = np.concatenate([self._first[kept], first])
        self._second = np.concatenate([self._second[kept], second])
        self._image = np.concatenate([self._image[:, kept], image], axis=1)
        self._squared = np.concatenate([self._squared[kept], np.empty(len(first))])
        self._measure(slice(len(kept), None))

    def _members(self, first, second) -> np.ndarray:
        members = np.zeros(len(self), dtype=bool)
        members[first] = members[second] = True
        return members


def box(particles: int, phi: float) -> float:
    """Side of the cube in diameters: phi = particles (pi / 6) / box^3."""
    _check(particles == int(particles) and particles >= 2, "particles", particles, "a whole number, at least 2")
    _check(0 < phi < 1, "phi", phi, "between 0 and 1 (spheres cannot fill more, and beyond random packing they stay active)")
    return (particles * np.pi / (6 * phi)) ** (1 / 3)


def run(spheres: Spheres, dynamics: Dynamics, rng: np.random.Generator, steps: int) -> np.ndarray:
    """The activity before each step; shorter than `steps` if absorbed, then its last entry is 0."""
    _check(steps == int(steps) and steps >= 1, "steps", steps, "a whole number, at least 1")
    activity = np.empty(steps)
    for t in range(steps):
        activity[t] = spheres.step(dynamics, rng)
        if activity[t] == 0:
            return activity[: t + 1]
    return activity


def _check(holds: bool, name: str, value, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {wanted}.")
