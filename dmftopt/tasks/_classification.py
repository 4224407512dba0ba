import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, ndtr
from jaxtyping import Array, Float

from .._checks import front_door
from ..numerics.quadrature import bent_mean, bent_nodes, beside, gaussian_nodes, safe_sqrt
from . import labels as laws
from . import losses
from ._base import AbstractLossTask, AbstractTask


class AbstractClassification(AbstractTask):
    """Labels y = ±1 drawn with P(y = 1) = p(w_star), and a loss of the margin y r alone.

    `labels` is a law of `tasks.labels`, or the short name of one:

    - "sign": y = sign(w_star).
    - "logistic": p = 1 / (1 + exp(-w_star)); the teacher's scale is the inverse label temperature.
    - "flipped": sign labels, each flipped with probability `flip_probability`.
    - "probit": p = Phi(w_star), that is y = sign(w_star + N(0, 1)).

    Loss and labels are symmetric under (r, w_star, y) -> -(r, w_star, y), so the solver's samples are drawn with y = 1 and
    a teacher field from its law given y = 1, of density 2 p(w) N(w; 0, rho), through a map of uniforms that is smooth in the
    parameters. That is exact, and makes derivatives with respect to the label law exact too.

    A new loss needs `loss` and `mean_gradient`, and `bends` (see `losses.AbstractMarginLoss`) where it does not bend at 0.
    """

    labels: laws.AbstractLabels

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        parameters = {"flip_probability": flip_probability}
        self.labels = laws.named("labels", labels, laws.BINARY, laws.AbstractLabels, parameters)

    @property
    def flip_probability(self) -> Any:
        """That of flipped labels, otherwise None."""
        return self.labels.flip_probability if isinstance(self.labels, laws.Flipped) else None

    mirrored = True

    @property
    def bends(self) -> tuple[Any, ...]:
        """The margins at which the gradient jumps, has a kink, or changes over a distance of order 1."""
        return (0.0,)

    def mean_loss(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 1)], z ~ N(0, 1)."""
        return bent_mean(lambda r: self.loss(r, jnp.ones_like(r)), s, self.bends)

    @abc.abstractmethod
    def mean_gradient(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[l(s z, 1)], z ~ N(0, 1)."""

    def valid(self):
        return self.labels.valid()

    def label(self, w_star, noise):
        return jnp.where(noise < self.labels.probability(w_star), 1.0, -1.0).astype(jnp.result_type(w_star))

    def error(self, r, y):
        return 0.5 * (1 - jnp.sign(y * r))

    def scores(self, r, y):
        return signed_scores(r, y)

    def sample(self, u_teacher, u_label, teacher_scale):
        xi = self.labels.sample(u_teacher, u_label, jnp.asarray(teacher_scale, u_teacher.dtype))
        return xi, jnp.ones_like(xi)

    def population(self, teacher_scale):
        """The label law's nodes for the teacher field given y = 1."""
        xi, weights = self.labels.nodes(jnp.asarray(teacher_scale))
        return xi, jnp.ones_like(xi), weights

    def test_risk(self, Q, O, rho):
        """E[loss(w, y)]: with y = sign(h), h of variance v and covariance O with w,

            E[l(sqrt(Q) z, 1)] + sqrt(2 / (pi v)) ∫_0^O E[l'(sqrt(Q - x²/v) z, 1)] dx

        with l the loss and l' its gradient (Price's theorem), where v = rho for sign labels, rho + 1 for probit labels, and a
        mixture for logistic ones. Exact up to quadratures of smooth functions in one dimension. For a law without `hidden_noise`
        E[l(sqrt(Q) z, 1)] + E[E[y | w_star] loss(w, 1)], by quadrature in two.
        """
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        hidden = self.labels.hidden_noise(Q.dtype)
        if hidden is None:
            return self.mean_loss(safe_sqrt(Q)) + self._lean(Q, O, rho)
        variance = rho + hidden.variances
        x, weights = (jnp.asarray(a, Q.dtype) for a in laws.UNIT)
        rest = Q[..., None, None] - O[..., None, None] ** 2 * beside(x[None], O) ** 2 / beside(variance[:, None], O)
        slope = (self.mean_gradient(safe_sqrt(rest)) @ weights * beside(jnp.sqrt(2 / (jnp.pi * variance)), O)) @ hidden.shares
        return self.mean_loss(safe_sqrt(Q)) + hidden.contrast * O * slope

    def test_error(self, Q, O, rho):
        """P(y w < 0). Sign labels: arccos(O / sqrt(Q rho)) / pi. For a law without `hidden_noise`: its mean over w_star, given
        which w is normal."""
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        hidden = self.labels.hidden_noise(Q.dtype)
        if hidden is None:
            scale = safe_sqrt(jnp.asarray(rho, Q.dtype))
            xi, shares = self.labels.nodes(scale)
            center, rest = (O / scale)[..., None] * beside(xi, O), safe_sqrt(Q - O**2 / rho)[..., None]
            sharp = 0.5 * (1 - jnp.sign(center))
            return jnp.where(rest > 0, ndtr(-center / jnp.where(rest > 0, rest, 1.0)), sharp) @ shares
        variance = rho + hidden.variances
        positive = (Q > 0)[..., None]
        scale = jnp.sqrt(jnp.where(positive, Q[..., None], 1.0) * beside(variance, Q))
        cosine = O[..., None] / jnp.where(positive, scale, 1.0)
        # Within rounding of ±1 the derivative of arccos is infinite; a few rounding units inside it is only large.
        limit = 1 - 4 * float(jnp.finfo(cosine.dtype).eps)
        error = jnp.arccos(jnp.clip(cosine, -limit, limit)) @ hidden.shares / jnp.pi
        return 0.5 + hidden.contrast * (error - 0.5)

    def moments(self, Q, O, rho):
        """With y = sign(h) as in `test_risk`, a mean over w alone, for which y = 1 has the probability Phi(O w / Q / deviation of
        h given w), and Price's theorem at the jump of the label,

            E[l(w, y) w] = Q E[dl / dw] + O E[dl / dh]          E[dl / dh] = sqrt(2 / (pi v)) E[l(sqrt(Q - O²/v) z, 1)].

        For a law without `hidden_noise` means over w given w_star, at the nodes of `population`."""
        hidden = self.labels.hidden_noise(Q.dtype)
        if hidden is None:
            return self._moments_given_teacher(Q[0, 0], O[0, 0], rho[0, 0])
        q, o, rho = jnp.maximum(Q[0, 0], rho[0, 0] * jnp.finfo(Q.dtype).eps ** (2 / 3)), O[0, 0], rho[0, 0]
        deviation, one = jnp.sqrt(q), jnp.ones((), Q.dtype)

        def given(variance):
            rest = q - o**2 / variance
            # The odds of the label as a function of z = w / sqrt(Q).
            slope = o / jnp.sqrt(variance * jnp.maximum(rest, 8 * jnp.finfo(Q.dtype).eps * q))
            z, weights = bent_nodes(deviation, self.bends, slope)
            weights = weights * (1 + hidden.contrast * erf(slope * z / 2**0.5))
            # Subtracting a constant changes nothing but the rounding, which a small Q would magnify.
            l, base = self.gradient(deviation * z, jnp.ones_like(z)), self.gradient(0 * one, one)
            jump = hidden.contrast * jnp.sqrt(2 / (jnp.pi * variance))
            by_h = self.mean_gradient(safe_sqrt(rest))
            a = (weights @ ((l - base) * z) / deviation) - o * jump * (by_h - base) / q
            return a, jump * by_h, weights @ l**2

        a, b, power = (values @ hidden.shares for values in jax.vmap(given)(rho + hidden.variances))
        return a.reshape(1, 1), (o * a + rho * b).reshape(1, 1), power.reshape(1, 1)

    def _moments_given_teacher(self, q, o, rho):
        scale = safe_sqrt(rho)
        xi, _, shares = self.population(scale)
        s = jnp.sqrt(jnp.maximum(q - o**2 / rho, rho * jnp.finfo(q.dtype).eps ** (2 / 3)))

        def given(center):
            z, weights = bent_nodes(s, [bend - center for bend in self.bends])
            l, base = (self.gradient(center + s * x, jnp.ones_like(x)) for x in (z, jnp.zeros((), q.dtype)))
            return weights @ l, weights @ ((l - base) * z) / s, weights @ l**2

        mean, a, power = jax.vmap(given)(o / scale * xi)
        a, with_teacher, power = (shares @ x for x in (a, scale * xi * mean, power))
        return a.reshape(1, 1), with_teacher.reshape(1, 1), power.reshape(1, 1)

    def _lean(self, Q, O, rho):
        """E[E[y | w_star] loss(w, 1)]: panels over w_star > 0, of which the mean label is an odd function, times the trapezoidal
        rule over w given w_star."""
        scale = safe_sqrt(jnp.asarray(rho, Q.dtype))
        xi, density = laws.half_normal(Q.dtype)
        lean = 0.5 * density * self.labels.mean(scale * xi)
        z, weights = gaussian_nodes(1 / 20, Q.dtype)

        def at(moments):
            q, o = moments
            center, swing = (o / scale * xi)[:, None], (safe_sqrt(q - o**2 / rho) * z)[None]
            above, below = (self.loss(swing + shift, jnp.ones_like(swing)) for shift in (center, -center))
            return lean @ ((above - below) @ weights)

        return jax.lax.map(at, (jnp.ravel(Q), jnp.ravel(O))).reshape(Q.shape)


class AbstractMarginTask(AbstractClassification, AbstractLossTask):
    """A classification whose loss is an object of `tasks.losses`."""

    @property
    @abc.abstractmethod
    def loss_function(self) -> losses.AbstractMarginLoss: ...

    @property
    def bends(self):
        return self.loss_function.bends

    def mean_loss(self, s):
        return self.loss_function.mean(s)

    def mean_gradient(self, s):
        return self.loss_function.mean_gradient(s)


class Logistic(AbstractMarginTask):
    """Logistic regression: loss = log(1 + exp(-y r)). For `labels` ("sign" by default) see `AbstractClassification`."""

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        AbstractClassification.__init__(self, labels, flip_probability)

    @property
    def loss_function(self):
        return losses.Logistic()


class Probit(AbstractMarginTask):
    """Probit regression: loss = -log Phi(y r). For `labels` ("sign" by default) see `AbstractClassification`."""

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        AbstractClassification.__init__(self, labels, flip_probability)

    @property
    def loss_function(self):
        return losses.Probit()


class Hinge(AbstractMarginTask):
    """Support vector machine: loss = max(0, 1 - y r). For `labels` ("sign" by default) see `AbstractClassification`.

    The gradient jumps at margin 1 (see `AbstractTask.kink_width`), which makes the time step first order with gradient noise: use
    more samples and steps than for a smooth loss, or `richardson`. With Brownian noise, which leaves the kink where it meets
    it, convergence is slower still.
    """

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        AbstractClassification.__init__(self, labels, flip_probability)

    @property
    def loss_function(self):
        return losses.Hinge()


class SquaredHinge(AbstractMarginTask):
    """loss = max(0, 1 - y r)² / 2. For `labels` ("sign" by default) see `AbstractClassification`."""

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        AbstractClassification.__init__(self, labels, flip_probability)

    @property
    def loss_function(self):
        return losses.SquaredHinge()


class Perceptron(AbstractMarginTask):
    """Rosenblatt's perceptron: loss = max(0, -y r), so each mistake moves the student by the learning rate times y x, and a
    field of exactly 0 counts as a mistake. For `labels` ("sign" by default) see `AbstractClassification`.

    The loss is homogeneous: without a ridge only the learning rate in units of the student matters. Start with
    `student_scale` > 0: at exactly 0 all samples are mistakes, just after it half of them, and a time step would average over
    that. The gradient jumps (see `AbstractTask.kink_width`).
    """

    @front_door
    def __init__(self, labels: str | laws.AbstractLabels = "sign", flip_probability: Any = None):
        AbstractClassification.__init__(self, labels, flip_probability)

    @property
    def loss_function(self):
        return losses.Perceptron()


def signed_scores(r: Float[Array, ""], y: Float[Array, ""]) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """`AbstractTask.scores` of one field and labels ±1: the scores differ by r."""
    return 0.5 * jnp.stack([-r, r]), 0.5 * (y + 1)
