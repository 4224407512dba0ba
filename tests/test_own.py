"""A user's own step, solver and adjoint work without touching the package; and the adjoints are each other's oracles."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_difference, problem

import dmftopt
from dmftopt.dmft import AbstractAdjoint, AbstractSolver, AbstractStep, Factors

KEY = jax.random.key(3)
GRID = dmftopt.TimeGrid.uniform(1.5, 3)
PROTOCOL = dmftopt.Protocol(0.8, batch_size=2.0, ridge=0.1)
SAMPLES = 128


def solve(solver, noise, p=None, protocol=PROTOCOL, **options):
    p = problem() if p is None else p
    return dmftopt.solve(p, protocol, GRID, noise=noise, solver=solver, key=KEY, **options)


class Euler(AbstractStep):
    """The protocol of the middle of a step, the update of its start."""

    continuous: ClassVar[bool] = True
    order: ClassVar[int] = 1
    nodes: ClassVar[tuple[float, ...]] = (0.5,)
    node_weights: ClassVar[tuple[float, ...]] = (1.0,)

    def ahead(self, now, last, ratio):
        return now

    def factors(self, x, ratio, curvature_ratio):
        return Factors(jnp.ones_like(x), jnp.ones_like(x), jnp.zeros_like(x))


class Mirrored(AbstractSolver):
    """Another solver, of which only the norm is told, twice."""

    solver: AbstractSolver = dmftopt.CausalInnovations()
    samples: int = eqx.field(static=True, default=SAMPLES)
    step: AbstractStep | None = None

    def step_for(self, noise):
        return self.solver.step_for(noise)

    def check(self, problem, protocol, noise, steps):
        if steps > 3:
            raise ValueError("grid: Mirrored takes at most 3 steps. Use a coarser one.")

    def draw(self, key, sizes, grid, noise, visits):
        return self.solver.draw(key, sizes, grid, noise, visits)

    def run(self, problem, noise, inputs, randomness, metrics):
        outcome = self.solver.run(problem, noise, inputs, randomness, metrics)
        return eqx.tree_at(lambda o: o.observables.norm, outcome, 2 * outcome.observables.norm)


class Recomputing(AbstractAdjoint):
    """Keeps the start of each step only."""

    order: ClassVar[int] = 1

    def scan(self, advance, length, constants, parameters, xs, carry, row):
        return dmftopt.DirectAdjoint().scan(jax.checkpoint(advance), length, constants, parameters, xs, carry, row)


def test_own_step():
    """With constant schedules this is what DiscreteStep does; but it is continuous, so that Richardson may halve it."""
    noise = dmftopt.noise.Brownian()
    own = solve(dmftopt.CausalInnovations(samples=SAMPLES, step=Euler()), noise)
    same = solve(dmftopt.CausalInnovations(), noise, samples=SAMPLES, step=dmftopt.DiscreteStep())
    np.testing.assert_allclose(own.test_risk, same.test_risk, rtol=1e-12)
    with pytest.raises(ValueError, match="step: an extensive batch"):
        solve(dmftopt.CausalInnovations(), dmftopt.noise.Bernoulli(0.5), step=Euler())


def test_own_solver():
    noise = dmftopt.noise.Brownian()
    own = solve(Mirrored(dmftopt.CausalInnovations(samples=SAMPLES)), noise)
    plain = solve(dmftopt.CausalInnovations(samples=SAMPLES), noise)
    np.testing.assert_allclose(own.norm, 2 * plain.norm, rtol=1e-12)
    np.testing.assert_array_equal(own.test_risk, plain.test_risk)
    with pytest.raises(ValueError, match="Mirrored takes at most 3"):
        dmftopt.solve(problem(), PROTOCOL, dmftopt.TimeGrid.uniform(1.0, 4), solver=Mirrored(), key=KEY)


ADJOINTS = {
    "one column": (None, dmftopt.noise.Poisson()),
    "committee": (dmftopt.tasks.Committee(2, 2), dmftopt.noise.Brownian()),
}
VALUES, ALONG = jnp.array([0.8, 0.6, 0.1]), jnp.array([1.0, -0.5, 0.3])


def objective(values, adjoint, task, noise):
    p = problem(task, student_scale=values[1])
    solver = dmftopt.CausalInnovations(samples=SAMPLES, adjoint=adjoint)
    s = solve(solver, noise, p, dmftopt.Protocol(values[0], batch_size=2.0, ridge=values[2]))
    return s.test_risk[-1] + 0.3 * s.train_loss[-1] + 0.1 * s.norm[-1].sum()


def write_once_gradient(task, noise):
    return jax.jit(jax.grad(lambda v: objective(v, dmftopt.WriteOnceAdjoint(), task, noise)))


@pytest.mark.parametrize(
    "task, noise",
    [pytest.param(*given, marks=[pytest.mark.slow] if name == "committee" else [], id=name) for name, given in ADJOINTS.items()],
)
@pytest.mark.slow
def test_direct_adjoint_forwards(task, noise):
    """Against the gradient of the write-once adjoint."""
    expected = write_once_gradient(task, noise)(VALUES)
    forward = jax.jit(lambda v: jax.jvp(lambda v: objective(v, dmftopt.DirectAdjoint(), task, noise), (v,), (ALONG,))[1])
    np.testing.assert_allclose(forward(VALUES), expected @ ALONG, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, noise",
    # Three minutes to compile for the committee.
    ADJOINTS.values(),
    ids=ADJOINTS,
)
def test_direct_adjoint_twice(task, noise):
    """JAX's own gradient of the plain scan, and second derivatives against central differences of the write-once gradient."""
    gradient = write_once_gradient(task, noise)
    expected = gradient(VALUES)
    direct = jax.grad(lambda v: objective(v, dmftopt.DirectAdjoint(), task, noise))
    # Forward over reverse: the gradient and the second derivative along a direction from one program.
    found, second = jax.jit(lambda v: jax.jvp(direct, (v,), (ALONG,)))(VALUES)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * float(jnp.max(jnp.abs(expected))))
    # Fourth order: at 1e-3 truncation is about 1e-12 and rounding 1e-16 / 1e-3.
    difference = central_difference(lambda h: gradient(VALUES + h * ALONG), 1e-3)
    np.testing.assert_allclose(second, difference, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(difference))))


def test_own_adjoint():
    def risk(rate, adjoint):
        solver = dmftopt.CausalInnovations(samples=SAMPLES, step=dmftopt.DiscreteStep(), adjoint=adjoint)
        return solve(solver, dmftopt.noise.NoNoise(), protocol=dmftopt.Protocol(rate)).test_risk[-1]

    gradient = jax.jit(jax.grad(risk), static_argnums=1)
    own, default = (gradient(jnp.array(0.8), adjoint) for adjoint in (Recomputing(), dmftopt.WriteOnceAdjoint()))
    np.testing.assert_allclose(own, default, rtol=1e-10)


def test_write_once_adjoint_says_what_it_cannot():
    def risk(rate):
        return solve(
            dmftopt.CausalInnovations(samples=SAMPLES), dmftopt.noise.NoNoise(), protocol=dmftopt.Protocol(rate)
        ).test_risk[-1]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(risk, (jnp.array(0.5),), (jnp.array(1.0),))


def test_a_solve_exports():
    """`jax.export` holds no callback to Python: the program runs elsewhere."""
    from jax import export

    def risk(rate):
        solver = dmftopt.CausalInnovations(samples=SAMPLES)
        return solve(solver, dmftopt.noise.NoNoise(), protocol=dmftopt.Protocol(rate)).test_risk

    program = export.export(jax.jit(risk))(jnp.array(0.5))
    np.testing.assert_allclose(program.call(jnp.array(0.5)), risk(jnp.array(0.5)), rtol=1e-12)
