"""The absorbing-state experiment: what its dynamics do step by step, its estimators on known answers, and a toy run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# No statement can import what begins with a digit.
EXPERIMENT = "experiments.13_absorbing_state"
dynamics, measure = (importlib.import_module(f"{EXPERIMENT}.{name}") for name in ("dynamics", "measure"))
BRO, PairwiseSGD, ParticlewiseSGD, Spheres = dynamics.BRO, dynamics.PairwiseSGD, dynamics.ParticlewiseSGD, dynamics.Spheres

KINDS = [BRO(0.3), BRO(0.3, reciprocal=False), PairwiseSGD(0.2, 0.75), ParticlewiseSGD(0.2, 0.5), PairwiseSGD(0.4, 1.0, 2.0)]


def shortest(difference, box):
    return difference - box * np.round(difference / box)


def brute_force(spheres):
    """Overlapping pairs and their distances, over all 27 images."""
    images = spheres.box * np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    x = spheres.positions % spheres.box
    distance = np.linalg.norm(x[:, None, None] - x[None, :, None] + images, axis=-1).min(axis=-1)
    return {(i, j): distance[i, j] for i in range(len(x)) for j in range(i) if distance[i, j] < 1}


@pytest.mark.parametrize("skin", [0.1, 0.6])
@pytest.mark.parametrize("moves", [BRO(1.0), BRO(0.05), ParticlewiseSGD(0.1, 0.5)], ids=str)
def test_neighbors_against_brute_force(moves, skin):
    rng = np.random.default_rng(1)
    spheres = Spheres.random(rng, 150, 0.4, skin)
    for _ in range(25):
        first, second, separation, distance = spheres.overlaps
        found = dict(zip(zip(np.maximum(first, second), np.minimum(first, second), strict=True), distance, strict=True))
        expected = brute_force(spheres)
        assert len(found) == len(first) > 0 and found.keys() == expected.keys()
        np.testing.assert_allclose([found[pair] for pair in expected], list(expected.values()), rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(separation, axis=0), distance, rtol=1e-12)
        assert spheres.activity == len({i for pair in expected for i in pair}) / 150
        spheres.step(moves, rng)


@pytest.mark.parametrize("m", [1.0, 1.5, 2.0])
def test_step_is_gradient_descent(m):
    """With p = 1 the displacement is -learning_rate times the gradient of the whole energy."""
    rng = np.random.default_rng(2)
    spheres = Spheres.random(rng, 80, 0.35)

    def energy(x):
        d = x[:, None] - x[None]
        d = d - spheres.box * jnp.round(d / spheres.box)
        i, j = np.triu_indices(len(x), 1)
        r = jnp.sqrt((d[i, j] ** 2).sum(-1))
        return (jnp.where(r < 1, jnp.where(r < 1, 1 - r, 0.5) ** m, 0.0) / m).sum()

    before = spheres.positions
    np.testing.assert_allclose(spheres.energy(m) * len(spheres), energy(before), rtol=1e-10)
    gradient = jax.grad(energy)(jnp.asarray(before))
    for sgd in (PairwiseSGD(1e-3, 1.0, m), ParticlewiseSGD(1e-3, 1.0, m)):
        same = Spheres(before, 0.35)
        assert same.step(sgd, rng) == spheres.activity
        np.testing.assert_allclose(shortest(same.positions - before, same.box), -1e-3 * gradient, atol=1e-12)


@pytest.mark.parametrize("moves", KINDS, ids=str)
def test_reciprocal_moves_keep_the_center_of_mass(moves):
    rng = np.random.default_rng(3)
    spheres = Spheres.random(rng, 200, 0.4)
    before = spheres.positions
    spheres.step(moves, rng)
    moved = shortest(spheres.positions - before, spheres.box)
    assert np.abs(moved).max() > 0.01
    conserved = isinstance(moves, PairwiseSGD) or (isinstance(moves, BRO) and moves.reciprocal)
    assert (np.abs(moved.sum(axis=0)).max() < 1e-10) == conserved


def test_particles_are_selected_whole():
    """Particle-wise SGD moves a selected particle by all of its gradient, and the others not at all."""
    rng = np.random.default_rng(4)
    spheres = Spheres.random(rng, 300, 0.4)
    before = spheres.positions
    full, some = Spheres(before, 0.4), Spheres(before, 0.4)
    full.step(ParticlewiseSGD(0.01, 1.0), rng)
    some.step(ParticlewiseSGD(0.01, 0.3), rng)
    whole, part = (shortest(s.positions - before, s.box) for s in (full, some))
    active = np.abs(whole).max(axis=1) > 1e-6
    selected = np.abs(part).max(axis=1) > 1e-12
    np.testing.assert_allclose(part[selected], whole[selected], atol=1e-12)
    assert 0.2 < selected[active].mean() < 0.4


def test_matching_of_mean_and_variance():
    """p = 3/4 and epsilon = 3/2 learning_rate: p s = epsilon / 2 and p (1 - p) s^2 = epsilon^2 / 12."""
    rng, pairs = np.random.default_rng(5), 400_000
    first, second = np.arange(pairs), np.arange(pairs) + pairs
    bro = BRO(0.3)
    sgd = dynamics.matched(0.3, 0.75)
    assert (sgd.learning_rate, sgd.p, sgd.m) == (pytest.approx(0.2), 0.75, 1.0)
    for moves in (bro, BRO(0.3, reciprocal=False), sgd, dynamics.matched(0.3, 0.75, ParticlewiseSGD)):
        for size in moves.kicks(rng, first, second, rng.random(pairs), 2 * pairs):
            # Five standard errors: of the mean 0.087 / sqrt(pairs), of the variance at most 0.0087 / sqrt(pairs).
            assert abs(size.mean() - 0.15) < 5 * 0.087 / pairs**0.5
            assert abs(size.var() - 0.3**2 / 12) < 5 * 0.0087 / pairs**0.5
    # Every p has the same mean, but only 3/4 the variance.
    other = dynamics.matched(0.3, 0.5)
    assert other.learning_rate * other.p == pytest.approx(0.15)
    assert other.learning_rate**2 * other.p * (1 - other.p) == pytest.approx(3 * 0.3**2 / 12)
    # Reciprocal kicks are one number, others two.
    one, two = bro.kicks(rng, first, second, first, 0), BRO(0.3, reciprocal=False).kicks(rng, first, second, first, 0)
    assert (one[0] == one[1]).all() and abs(np.corrcoef(two)[0, 1]) < 0.01


def test_activity_and_absorption():
    # Two overlap through the boundary by 0.4, one only touches them from afar, one is alone.
    phi = 4 * np.pi / 6 / 8.0**3
    x = np.array([[0.1, 4, 4], [7.5, 4, 4], [1.2, 4, 4], [4, 0, 0]])
    spheres = Spheres(x, phi)
    assert spheres.box == pytest.approx(8.0)
    assert spheres.activity == 0.5
    assert spheres.energy() == pytest.approx(0.4 / 4) and spheres.energy(2.0) == pytest.approx(0.4**2 / 2 / 4)
    np.testing.assert_allclose(dynamics.potential([0.5, 1.0, 2.0], 2.0), [0.125, 0, 0])
    # 0.3 apart each: then the first overlaps the third.
    assert spheres.step(PairwiseSGD(0.3, 1.0), np.random.default_rng(0)) == 0.5
    np.testing.assert_allclose(spheres.positions[:, 0] % 8, [0.4, 7.2, 1.2, 4])
    assert spheres.activity == 0.5 and spheres.overlaps[3] == pytest.approx([0.8])
    # A dilute system is absorbed, and then nothing moves, whatever the dynamics.
    rng = np.random.default_rng(6)
    spheres = Spheres.random(rng, 300, 0.1)
    activity = dynamics.run(spheres, BRO(0.3), rng, 1000)
    assert len(activity) < 1000 and activity[-1] == 0 and (activity[:-1] > 0).all()
    assert spheres.activity == spheres.energy() == 0 and not brute_force(spheres)
    before = spheres.positions
    for moves in KINDS:
        assert dynamics.run(spheres, moves, rng, 5).tolist() == [0.0]
    np.testing.assert_array_equal(spheres.positions, before)


def test_same_seed_same_answer():
    def end(seed):
        rng = np.random.default_rng(seed)
        spheres = Spheres.random(rng, 200, 0.5)
        return dynamics.run(spheres, ParticlewiseSGD(0.1, 0.75), rng, 50), spheres.positions

    (a, x), (b, y), (c, z) = end(1), end(1), end(2)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(x, y)
    assert (a != c).any() and (x != z).any()


def test_coincident_centers():
    spheres = Spheres(np.zeros((30, 3)), 0.01)
    assert spheres.step(BRO(0.1), np.random.default_rng(0)) == 1.0 and np.isfinite(spheres.positions).all()


def test_fates_and_bisection():
    rng = np.random.default_rng(7)
    assert measure.fate(Spheres.random(rng, 300, 0.15, 0.1), BRO(0.5), rng, 200, 1)["fate"] == "absorbed"
    assert measure.fate(Spheres.random(rng, 300, 0.5, 0.1), BRO(0.5), rng, 50, 2)["fate"] == "stationary"
    # Far from relaxed at the first and last look.
    early = measure.fate(Spheres.random(rng, 300, 0.6, 0.1), BRO(0.001), rng, 200, 0)
    assert early["fate"] in ("undecided", "stationary") and early["steps"] == 200
    asked = {"kind": "BRO", "epsilon": 0.5, "p": None, "particles": 300, "halvings": 5, "patience": 50, "least_steps": 100}
    asked |= {"doublings": 2, "seed": [0]}
    found = measure.critical_phi(low=0.1, high=0.5, **asked)
    assert found["bracketed"] and found["absorbed"] < found["phi"] < found["stationary"] and 0.25 < found["phi"] < 0.35
    assert found["undecided"] == sum(r["fate"] == "undecided" for r in found["runs"])
    assert found == measure.critical_phi(low=0.1, high=0.5, **asked)
    json.dumps(found, allow_nan=False)
    # A range that does not contain it has no answer.
    above = measure.critical_phi(low=0.45, high=0.6, **asked)
    assert not above["bracketed"] and above["phi"] is None


def test_estimators_on_known_answers():
    time = np.geomspace(1, 1000, 40)
    # Activity dies below 0.3, above it levels off.
    decays = {phi: {"time": time, "absorbed_after": 2000 if phi < 0.3 else None} for phi in (0.297, 0.298, 0.299, 0.301, 0.302)}
    for phi, d in decays.items():
        d["activity"] = time ** (-0.7 + 40 * (phi - 0.3))
    found = measure.critical_decay(decays, (10, 1000))
    assert found == pytest.approx({"phi": 0.3, "half_width": 0.001, "exponent": 0.7, "half_difference": 0.04})
    # Not bracketed, or dead too early to tell.
    assert measure.critical_decay({phi: d for phi, d in decays.items() if phi > 0.3}, (10, 1000)) is None
    assert measure.critical_decay({phi: d for phi, d in decays.items() if phi < 0.3}, (10, 1000)) is None
    decays[0.299]["absorbed_after"] = 500
    assert measure.critical_decay(decays, (10, 1000)) is None and measure.critical_decay(decays, (10, 100)) is not None
    x = np.array([0.01, 0.02, 0.05])
    assert measure.order_exponent(x, 3 * x**0.84) == pytest.approx(0.84)
    assert measure.order_fit(0.3 + x, 3 * x**0.84) == pytest.approx({"phi_c": 0.3, "beta": 0.84}, rel=1e-3)
    e = np.array([0.2, 0.1, 0.05, 0.025, 0.0125])
    fit = measure.extrapolated(e, 0.64 - 0.7 * e**0.9, np.full(5, 1e-3), None)
    assert fit["parameters"] == pytest.approx([0.64, 0.7, 0.9], rel=1e-5) and fit["phi_0"] == fit["parameters"][0]
    # The standard error of a line's intercept, by hand.
    noisy = 0.64 - e + np.array([1, -1, 1, -1, 1]) * 1e-3
    expected = 1e-3 * np.sqrt(1 / 5 + e.mean() ** 2 / ((e - e.mean()) ** 2).sum())
    fit = measure.extrapolated(e, noisy, np.full(5, 1e-3), 1.0)
    assert fit["standard_error"] == pytest.approx(expected * np.sqrt(max(1, fit["chi2_per_degree"])), rel=1e-6)


def test_flatness_of_a_pair():
    """Two overlapping spheres and V quadratic: the energy's mean increase is half the deviation squared times its Laplacian."""
    spheres, deviation = Spheres([[4, 4, 4], [4.5, 4, 4], [0, 0, 0]], 3 * np.pi / 6 / 8.0**3), 0.02
    # In the distance vector, moved by sqrt(2) deviation: V'' + 2 V' / r = 1 - 2 (1 - r) / r = -1 at r = 1/2.
    expected = 0.5 * 2 * deviation**2 * -1 / 3
    found = measure.flatness(spheres, np.random.default_rng(8), deviation, 4000, 2.0)
    # One draw deviates by |V'| sqrt(2) deviation / 3.
    assert abs(found - expected) < 4 * 0.5 * 2**0.5 * deviation / 3 / 4000**0.5
    assert measure.flatness(spheres, np.random.default_rng(8), deviation, 5) == measure.flatness(
        spheres, np.random.default_rng(8), deviation, 5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BRO(0.0), "epsilon"),
        (lambda: BRO(np.nan), "epsilon"),
        (lambda: PairwiseSGD(-1.0, 0.5), "learning_rate"),
        (lambda: PairwiseSGD(0.1, 0.0), "p is"),
        (lambda: ParticlewiseSGD(0.1, 1.5), "p is"),
        (lambda: PairwiseSGD(0.1, 0.5, 0.5), "m is"),
        (lambda: dynamics.matched(0.1, 0.0), "p is"),
        (lambda: dynamics.box(100, 1.2), "phi"),
        (lambda: dynamics.box(1, 0.5), "particles"),
        (lambda: Spheres.random(np.random.default_rng(0), 10, 0.5), "more particles"),
        (lambda: Spheres(np.zeros((100, 2)), 0.3), "positions"),
        (lambda: Spheres(np.full((100, 3), np.nan), 0.3), "positions"),
        (lambda: Spheres(np.zeros((100, 3)), 0.3, skin=0.0), "skin"),
        (lambda: dynamics.run(Spheres(np.zeros((100, 3)), 0.3), BRO(0.1), np.random.default_rng(0), 0), "steps"),
        (lambda: measure.dynamics("BRO", 0.1, 0.5), "kind"),
        (lambda: measure.dynamics("pairwise SGD", 0.1), "kind"),
        (lambda: measure.critical_phi("BRO", 0.1, None, 100, 0.6, 0.5, 3, 1, 10, 1, [0]), "low"),
        (lambda: measure.extrapolated([0.1, 0.2], [0.5, 0.4], [0.1, 0.1], None), "step sizes"),
        (lambda: measure.flatness(Spheres(np.zeros((100, 3)), 0.3), np.random.default_rng(0), 0.0, 1), "deviation"),
    ],
)
def test_wrong_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_smoke_and_resume(tmp_path):
    command = [sys.executable, "-m", f"{EXPERIMENT}.run", "--smoke", "--out", tmp_path / "absorbing"]
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, capture_output=True, timeout=600, cwd=root)
    out = tmp_path / "absorbing_smoke"
    assert {f.name for f in out.iterdir()} == {"result.json", "figure.png", "cells"}
    first = json.loads((out / "result.json").read_text())
    assert {"settings", "critical", "checks", "limits", "flatness", "exponents"} == first.keys()
    # Resumed after a stop: what is finished is read, what is missing is computed again, to the same result.
    cells = sorted((out / "cells").iterdir())
    cells[0].unlink()
    before = {f: f.stat().st_mtime_ns for f in cells[1:]}
    subprocess.run(command, check=True, capture_output=True, timeout=600, cwd=root)
    assert cells[0].exists() and {f: f.stat().st_mtime_ns for f in cells[1:]} == before
    assert json.loads((out / "result.json").read_text()) == first
