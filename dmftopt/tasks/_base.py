import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float

from ..numerics.matrices import inverse_root, rank_floor, square_root
from ..numerics.quadrature import gauss_hermite, safe_sqrt, uniform_points
from ..numerics.ties import shares_of_largest
from ._derivatives import curvature_of, gradient_of
from .losses import AbstractLoss


class AbstractTask(eqx.Module):
    """A loss and a label law. A new task needs only `loss` and `label`; everything else has a default.

    With one student field r = x·theta and one teacher field w_star = x·theta_star, all methods are elementwise in them.

    With several (`columns` = m and `teacher_columns` = m_star, both whole numbers instead of None), `loss`, `label`, `gradient`,
    `curvature` and `error` are about one sample: r has shape (m,), w_star (m_star,), y is a scalar, the gradient has shape (m,)
    and the curvature (m, m). In `sample`, `test_risk` and `test_error` the shapes are those given there.

    Gradients with respect to the label law flow through `label`. That is exact when the label is differentiable in its
    inputs, or when it does not depend on the parameter at all (a sign and the teacher's scale). A label that jumps where a
    parameter moves (a random class) needs its own `sample`, as `Logistic` has; for classes ±1 a law of `tasks.labels` has it.

    Float fields of a task arrive as traced arrays, so that they can be swept and differentiated; mark what steers Python
    control flow `eqx.field(static=True)`.

    `mixture`: whether the teacher's columns are the means of clusters instead of directions of Gaussian fields: a sample of
    cluster c is x = Lambda theta_star_c / d + Gaussian, and `sample` returns cluster indicators for teacher fields.

    `mirrored`: whether `sample` draws only one of every two mirror images (w_star, y) and (-w_star, -y), which are equally likely
    and have the same loss, r being mirrored too. Metrics may tell them apart, and are averaged over both.
    """

    mixture: ClassVar[bool] = False
    mirrored: ClassVar[bool] = False

    @property
    def columns(self) -> int | None:
        """Columns m of the student, None for a single field that is passed as a scalar."""
        return None

    @property
    def teacher_columns(self) -> int | None:
        """Columns m_star of the teacher, None for a single field that is passed as a scalar."""
        return None

    @property
    def kink_width(self) -> float:
        """0 for a loss with a continuous gradient. Where the gradient jumps (a hinge, ReLU units), a positive width: derivatives
        of the gradient are then taken as differences over this distance to either side, in units of the fields. Automatic
        differentiation, sample by sample, would never see the jump, and derivatives of a solve would be wrong. The bias is of
        order width², the variance of order 1 / (width * samples)."""
        return 0.0

    @property
    def bend_width(self) -> float:
        """The same for the curvature: positive where that jumps, as where Huber's loss bends. Steps of the solver
        depend on its mean, and that on the parameters."""
        return self.kink_width

    @property
    def jumps(self) -> bool:
        """Whether a kick of the field can turn a whole gradient on or off, as beyond a kink. With gradient noise the time step is
        then of first order only."""
        return self.kink_width > 0

    @property
    def risk_nodes(self) -> int:
        """At about how many nodes `test_risk` evaluates the loss at once, for estimates of memory."""
        return 2**13

    @abc.abstractmethod
    def loss(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Loss of the prediction r for the label y, elementwise."""

    @abc.abstractmethod
    def label(self, w_star: Float[Array, "..."], noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """Label of the teacher field w_star; `noise` is uniform on (0, 1) and independent (`ndtri(noise)` is normal)."""

    def gradient(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """l(r, y) = d loss / d r."""
        return gradient_of(self.loss, r, y)

    def curvature(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """d l / d r, over `kink_width` where there is one. It sets the rate of the exponential step."""
        return curvature_of(self.gradient, r, y, self.kink_width, self.columns)

    def scores(self, r: Float[Array, "..."], y: Float[Array, ""]) -> tuple[Float[Array, " class"], Float[Array, ""]] | None:
        """Of one sample: scores of the classes, the largest of which is predicted, and the number 0, 1, ... of the label's class,
        as a float. None where the task is not a classification."""
        return None

    def error(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."] | None:
        """0-1 error of the prediction, by default that of `scores`, a tie counting by chance. None where the task is not a
        classification."""

        def of_sample(r, y):
            found = self.scores(r, y)
            if found is None:
                return None
            scores, number = found
            own = (jnp.arange(scores.shape[0], dtype=scores.dtype) == number).astype(scores.dtype)
            return 1 - jnp.sum(own * shares_of_largest(scores))

        if self.columns is not None:
            return of_sample(r, y)
        r, y = jnp.broadcast_arrays(r, y)
        for _ in r.shape:
            of_sample = jax.vmap(of_sample)
        return of_sample(r, y)

    def valid(self) -> Bool[Array, ""]:
        """Whether parameters are in their domain, for values that could not be checked because they are traced."""
        return jnp.asarray(True)

    def sample(self, u_teacher: Float[Array, "..."], u_label: Float[Array, "..."], teacher_scale: Any):
        """Training samples from uniforms on (0, 1): the teacher field divided by `teacher_scale`, and the label.

        With several teacher columns u_teacher and the fields have shape (m_star, sample), u_label (sample,), and
        `teacher_scale` is the matrix that takes these independent normals to the fields w_star.
        """
        xi = ndtri(u_teacher)
        if self.teacher_columns is None:
            return xi, self.label(teacher_scale * xi, u_label)
        return xi, jax.vmap(self.label, in_axes=(1, 0))(teacher_scale @ xi, u_label)

    def population(self, teacher_scale: Float[Array, ""]) -> tuple[Float[Array, " node"], ...]:
        """Nodes (teacher field / `teacher_scale`, label) and weights, summing to 1, for expectations over a fresh sample.

        By default 4096 fixed low-discrepancy points with equal weights: good to about 1e-3 for labels with a jump. Override
        it where a better rule is known. Nodes may use a symmetry of loss and labels.
        """
        index = jnp.arange(1, 4097, dtype=jnp.asarray(teacher_scale).dtype)
        # R2 sequence (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
        plastic = 1.32471795724474602596
        xi, y = self.sample((0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0, teacher_scale)
        return xi, y, jnp.full_like(xi, 1 / 4096)

    def test_risk(self, Q: Float[Array, "..."], O: Float[Array, "..."], rho: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(w, label(w_star))] for (w, w_star) ~ N(0, [[Q, O], [O, rho]]).

        By default the nodes of `population` over (w_star, label noise) times 15 Gauss-Hermite nodes over w given w_star.
        Override it where a closed form exists. With several columns Q is (m, m), O (m, m_star), rho (m_star, m_star), and the
        default 8192 fixed low-discrepancy points: good to about 5e-4 for smooth losses and labels, 5e-3 for those that jump.
        """
        return population_mean(self, self.loss, Q, O, rho)

    def test_error(self, Q: Float[Array, "..."], O: Float[Array, "..."], rho: Float[Array, "..."]) -> Float[Array, "..."] | None:
        """E[error(w, label(w_star))], or None where the task is not a classification."""
        return population_mean(self, self.error, Q, O, rho) if classifies(self) else None

    def moments(
        self, Q: Float[Array, "m m"], O: Float[Array, "m m_star"], rho: Float[Array, "m_star m_star"]
    ) -> tuple[Array, Array, Array] | None:
        """E[dl / dw] (m, m), E[l w_star^T] (m, m_star) and E[l l^T] (m, m) on fresh samples, where the task knows better than
        averages over them, or None. A single field is a column here."""
        return None


class AbstractLossTask(AbstractTask):
    """A task whose loss is an object of `tasks.losses`."""

    @property
    @abc.abstractmethod
    def loss_function(self) -> AbstractLoss: ...

    @property
    def kink_width(self):
        return self.loss_function.kink_width

    @property
    def bend_width(self):
        return self.loss_function.bend_width

    def loss(self, r, y):
        return self.loss_function(r, y)

    def gradient(self, r, y):
        return self.loss_function.gradient(r, y)

    def curvature(self, r, y):
        return self.loss_function.curvature(r, y)


def classifies(task: AbstractTask) -> bool:
    """Whether there is a 0-1 error."""
    shape = () if task.columns is None else (task.columns,)
    return eqx.filter_eval_shape(task.error, jnp.zeros(shape), jnp.zeros(())) is not None


def fresh(
    task: AbstractTask, rho: Float[Array, "m_star m_star"], points: Float[Array, "dimension node"] | None = None
) -> tuple[Float[Array, "m_star node"], Float[Array, " node"], Float[Array, "m node"]]:
    """Nodes of equal weight for a fresh sample: the teacher's fields as in `AbstractTask.sample`, the label, and normals for what
    else the student's fields are made of. `points`: the uniforms to make them of, instead of 8192 fixed ones."""
    teachers, columns = task.teacher_columns or 1, task.columns or 1
    points = jnp.asarray(uniform_points(teachers + 1 + columns) if points is None else points, rho.dtype)
    root = square_root(rho, rank_floor(rho))
    if task.teacher_columns is None:
        xi, y = task.sample(points[0], points[1], root[0, 0])
        return xi[None], y, ndtri(points[2:])
    return *task.sample(points[:teachers], points[teachers], root), ndtri(points[teachers + 1 :])


def student_fields(
    task: AbstractTask, Q: Float[Array, "m m"], O: Float[Array, "m m_star"], rho: Float[Array, "m_star m_star"]
) -> tuple[Float[Array, "m m_star"], Float[Array, "m m"]]:
    """The student's fields on a fresh sample, as matrices that act on the first and the last of what `fresh` returns."""
    to_known = O if task.mixture else O @ inverse_root(rho, rank_floor(rho))
    rest = Q if task.mixture else Q - to_known @ to_known.T
    return to_known, square_root(rest, rank_floor(Q))


def population_mean(
    task: AbstractTask,
    function: Callable[[Array, Array], Any],
    Q: Float[Array, "..."],
    O: Float[Array, "..."],
    rho: Float[Array, "..."],
) -> Float[Array, "..."]:
    """E[function(w, label(w_star))] by the default rules of `AbstractTask.test_risk`."""
    dtype = jnp.asarray(Q).dtype
    if task.columns is not None:
        known, y, z = fresh(task, rho)
        to_known, root = student_fields(task, Q, O, rho)
        return jnp.mean(jax.vmap(function, in_axes=(1, 0))(to_known @ known + root @ z, y))
    xi, y, shares = task.population(safe_sqrt(jnp.asarray(rho, dtype)))
    nodes, weights = gauss_hermite(15, dtype)

    def at(q, o):
        rest = safe_sqrt(q - o**2 / rho)
        w = o / safe_sqrt(rho) * xi[:, None] + rest * nodes[None]
        return shares @ (function(w, y[:, None]) @ weights)

    return jax.lax.map(lambda qo: at(*qo), (jnp.ravel(Q), jnp.ravel(O))).reshape(jnp.shape(Q))
