"""Problems and exact answers shared by the tests."""

import jax.numpy as jnp
import numpy as np

import dmftopt


def four_groups() -> dmftopt.features.Features:
    return dmftopt.features.spectrum([4.0, 1.0, 0.5, 0.25], [0.1, 0.3, 0.3, 0.3])


def problem(task=None, features=None, **kwargs) -> dmftopt.Problem:
    defaults = {"delta": 2.0, "teacher_scale": 1.0, "student_scale": 0.5**0.5}
    task = dmftopt.tasks.Logistic() if task is None else task
    features = dmftopt.features.isotropic() if features is None else features
    return dmftopt.Problem(task, features, **{**defaults, **kwargs})


def least_squares_modes(problem: dmftopt.Problem, initial, fixed):
    """Exact order parameters of isotropic least squares when, along every eigenvector of X^T X / delta with eigenvalue s,

        theta_k = initial(s)[k] theta_0 + fixed(s)[k] (s theta_star + X^T noise / delta)

    (`initial`, `fixed`: s (mode,) -> (time, mode)). The eigenvalues follow Marchenko and Pastur's law of ratio 1/delta. Returns
    correlation (time, time), teacher overlap, train loss (time,).
    """
    delta, noise2 = float(problem.delta), float(problem.task.label_noise) ** 2
    teacher2, student2 = float(problem.teacher_scale) ** 2, float(problem.student_scale) ** 2
    assert delta > 1, "below 1 the law has an atom at 0"
    # s = 1 + g + 2 sqrt(g) cos(angle): the density becomes (2/pi) sin² / s, and the midpoint rule converges exponentially.
    count, ratio = 2000, 1 / delta
    angle = (np.arange(count) + 0.5) * np.pi / count
    s = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angle)
    weight = 2 * np.sin(angle) ** 2 / s / count
    a, c = initial(s), fixed(s)
    correlation = (a * weight * student2) @ a.T + (c * weight * (s**2 * teacher2 + noise2 * s / delta)) @ c.T
    overlap = (c * weight * s * teacher2).sum(axis=1)
    error = a**2 * student2 + (c * s - 1) ** 2 * teacher2 + c**2 * noise2 * s / delta
    train = 0.5 * ((weight * s * error).sum(axis=1) - 2 * (weight * c * s).sum(axis=1) * noise2 / delta + noise2)
    return correlation, overlap, train


def central_difference(f, h):
    """Slope of f at 0, of fourth order in h."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def continued(grid: dmftopt.TimeGrid, steps: int) -> dmftopt.TimeGrid:
    """`grid` and as many more steps, hundredths of its last, as make `steps`. The solver is causal: up to the end of `grid` the
    result is that on `grid`, by a program that grids of every length share. (Longer steps would take their share of the leading
    dimensions of the quasi-random points.)"""
    more = grid.times[-1] + 0.01 * grid.step_sizes[-1] * jnp.arange(1.0, steps - grid.steps + 1)
    return dmftopt.TimeGrid(jnp.concatenate([grid.times, more]))


def assert_within(result, expected, error, sigmas, slack=0.0):
    """|result - expected| <= sigmas * error + slack * max|expected|, everywhere."""
    result, expected, error = (np.asarray(a) for a in (result, expected, error))
    bound = sigmas * error + slack * np.max(np.abs(expected))
    worst = np.argmax(np.abs(result - expected) - bound)
    assert np.all(np.abs(result - expected) <= bound), (
        f"off by {np.ravel(result - expected)[worst]:.3g}, allowed {np.ravel(np.broadcast_to(bound, result.shape))[worst]:.3g}"
    )


def scalars(solution) -> jnp.ndarray:
    """The four order parameters at the last time."""
    return jnp.stack(
        [
            solution.student_overlap[-1, 0, 0],
            solution.teacher_overlap[-1, 0, 0],
            solution.train_loss[-1],
            solution.test_risk[-1],
        ]
    )
