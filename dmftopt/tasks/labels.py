"""Laws of labels. Tasks take the short name of one, or an object from here, or your own:

    dmftopt.tasks.Logistic("probit")                             # the same as
    dmftopt.tasks.Logistic(dmftopt.tasks.labels.Probit())

    class Lapsing(dmftopt.tasks.labels.AbstractLabels):          # as in psychophysics: an inattentive, else probit, observer
        lapse: float

        def probability(self, w_star):                           # P(y = 1 | w_star)
            return 0.5 * self.lapse + (1 - self.lapse) * jax.scipy.special.ndtr(w_star)

    dmftopt.tasks.Logistic(Lapsing(0.1))

`AbstractLabels` are of y = ±1, `AbstractClassLabels` of class numbers, `AbstractLabelNoise` is added to a regression's labels.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float
from numpy.polynomial import chebyshev
from scipy import special, stats

from .._checks import as_number, check_real, check_shape, is_concrete, without_derivative
from ..numerics.quadrature import beside, panels


class HiddenNoise(NamedTuple):
    """Labels as signs of a hidden h = w_star + noise, E[y | h] = contrast sign(h), where the noise mixes normal laws of these
    variances by these shares (which sum to 1)."""

    variances: Float[Array, " law"]
    shares: Float[Array, " law"]
    contrast: Any


class AbstractLabels(eqx.Module):
    """Labels y = ±1 that treat both classes alike, P(y = 1 | -w_star) = P(y = -1 | w_star).

    Your own law needs only `probability`, smooth but perhaps for a jump at 0, written with jax.numpy. Float fields can be swept
    and differentiated: training samples are drawn with y = 1 through a map of uniforms that is smooth in the law's parameters,
    so derivatives with respect to them are exact. Test risks of your own law are quadratures, good to about 1e-7, for losses
    with a kink 1e-5; give `hidden_noise` for closed forms where you know it.

    Raises ValueError where the law is not symmetric. (Write an `AbstractTask` with `label` and `sample` for one that is not.)
    """

    def __check_init__(self):
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return
        w_star = np.array([0.1, 0.7, 3.0])
        with jax.ensure_compile_time_eval():
            above, below = (np.asarray(self.probability(jnp.asarray(sign * w_star))) for sign in (1, -1))
        name = type(self).__name__
        if above.shape != w_star.shape:
            raise ValueError(f"probability of {name} must be elementwise in w_star, got shape {above.shape} for (3,).")
        if not np.all((above >= 0) & (above <= 1)):
            raise ValueError(f"probability of {name} must lie in [0, 1], got {above} at w_star = {w_star}.")
        if not np.allclose(above + below, 1, atol=1e-5):
            raise ValueError(
                f"probability of {name} must be symmetric, p(-w_star) = 1 - p(w_star), got {above} at {w_star} and {below} at "
                "the negatives. For another law write an AbstractTask with label and sample."
            )

    @abc.abstractmethod
    def probability(self, w_star: Float[Array, "..."]) -> Float[Array, "..."]:
        """P(y = 1 | w_star), elementwise."""

    def mean(self, w_star: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[y | w_star]."""
        return 2 * self.probability(w_star) - 1

    def valid(self) -> Bool[Array, ""]:
        """Whether parameters are in their domain, for values that could not be checked because they are traced."""
        return jnp.asarray(True)

    def sample(
        self, u_teacher: Float[Array, " sample"], u_label: Float[Array, " sample"], scale: Float[Array, ""]
    ) -> Float[Array, " sample"]:
        """Teacher fields over their standard deviation `scale` given y = 1, of density 2 p(scale xi) N(xi; 0, 1), of uniforms on
        (0, 1). By default the quantile at `u_teacher`, differentiable by the implicit function theorem."""
        return _quantile(self, u_teacher, scale)

    def nodes(self, scale: Float[Array, ""]) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
        """Nodes and weights for the law of `sample`."""
        xi, density = half_normal(scale.dtype)
        right, wrong = (self.probability(s * xi).astype(scale.dtype) for s in (scale, -scale))
        return jnp.concatenate([xi, -xi]), jnp.concatenate([right * density, wrong * density])

    def hidden_noise(self, dtype: Any) -> HiddenNoise | None:
        """None where the labels are not known as signs of normal variables; risks are then quadratures over `nodes`."""
        return None


class Sign(AbstractLabels):
    """y = sign(w_star)."""

    def probability(self, w_star):
        return jnp.where(w_star > 0, 1.0, 0.0)

    def sample(self, u_teacher, u_label, scale):
        return ndtri(0.5 + 0.5 * u_teacher)

    def nodes(self, scale):
        return half_normal(scale.dtype)

    def hidden_noise(self, dtype):
        return HiddenNoise(jnp.zeros(1, dtype), jnp.ones(1, dtype), 1.0)


class Logistic(AbstractLabels):
    """P(y = 1) = 1 / (1 + exp(-w_star)); the teacher's scale is the inverse label temperature."""

    def probability(self, w_star):
        return jax.nn.sigmoid(w_star)

    def mean(self, w_star):
        return jnp.tanh(0.5 * w_star)

    def hidden_noise(self, dtype):
        variances, shares = (jnp.asarray(a, dtype) for a in _LOGISTIC_NOISE)
        return HiddenNoise(variances, shares, 1.0)


class Flipped(AbstractLabels):
    """y = sign(w_star), flipped with probability `flip_probability` < 1/2."""

    flip_probability: Any = eqx.field(converter=as_number)

    def __check_init__(self):
        check_real("flip_probability", self.flip_probability, minimum=0.0)
        check_shape("flip_probability", self.flip_probability, ((),), "Use jax.vmap for a sweep.")
        if is_concrete(self.flip_probability) and np.any(np.asarray(self.flip_probability) >= 0.5):
            raise ValueError(f"flip_probability must be below 0.5, got {self.flip_probability}. Swap the labels instead.")

    def valid(self):
        p = jnp.asarray(self.flip_probability)
        return (p >= 0) & (p < 0.5)

    def probability(self, w_star):
        return jnp.where(w_star > 0, 1 - self.flip_probability, self.flip_probability)

    def sample(self, u_teacher, u_label, scale):
        p = jnp.asarray(self.flip_probability, dtype=u_teacher.dtype)
        below = u_teacher < p
        # Where the flip probability is 0 no u is below it: keep that branch finite for its (unused) derivative.
        wrong = 0.5 * u_teacher / jnp.where(p > 0, p, 1.0)
        right = 0.5 + 0.5 * (u_teacher - p) / (1 - p)
        return ndtri(jnp.where(below, wrong, right))

    def hidden_noise(self, dtype):
        return HiddenNoise(jnp.zeros(1, dtype), jnp.ones(1, dtype), 1 - 2 * jnp.asarray(self.flip_probability, dtype))


class Probit(AbstractLabels):
    """P(y = 1) = Phi(w_star), that is y = sign(w_star + N(0, 1))."""

    def probability(self, w_star):
        return ndtr(w_star)

    def sample(self, u_teacher, u_label, scale):
        # Given y = 1, w_star + N(0, 1) is half normal; given that, w_star is normal.
        return (scale * ndtri(0.5 + 0.5 * u_teacher) + ndtri(u_label)) / jnp.sqrt(1 + scale**2)

    def hidden_noise(self, dtype):
        return HiddenNoise(jnp.ones(1, dtype), jnp.ones(1, dtype), 1.0)


class AbstractClassLabels(eqx.Module):
    """Class numbers 0, 1, ..., as floats, of the teacher's fields, one a class. Your own law needs only `probabilities`.

    A label jumps where a parameter moves it, so a label that is drawn has no derivative: asked for one, it raises a ValueError.
    """

    @abc.abstractmethod
    def probabilities(self, w_star: Float[Array, "class ..."]) -> Float[Array, "class ..."]:
        """P(class | teacher's fields), classes first."""

    def label(self, w_star: Float[Array, " class"], noise: Float[Array, ""]) -> Float[Array, ""]:
        """Of one sample; `noise` is uniform on (0, 1)."""
        probabilities = self.probabilities(self.fixed(w_star))
        return jnp.sum(noise > jnp.cumsum(probabilities)[:-1]).astype(w_star.dtype)

    def fixed(self, w_star: Float[Array, "..."]) -> Float[Array, "..."]:
        """The teacher's fields, of which there is no derivative."""
        return without_derivative(w_star, _DRAWN)


class Argmax(AbstractClassLabels):
    """The class of the largest teacher field. Derivatives are exact in whatever scales all teacher fields alike, and treat the
    teacher's angles as fixed."""

    def probabilities(self, w_star):
        classes = jnp.arange(w_star.shape[0]).reshape(-1, *[1] * (w_star.ndim - 1))
        return (jnp.argmax(w_star, axis=0)[None] == classes).astype(w_star.dtype)

    def label(self, w_star, noise):
        return jnp.argmax(w_star).astype(w_star.dtype)

    def fixed(self, w_star):
        return w_star


class Softmax(AbstractClassLabels):
    """Drawn with probabilities exp(w_star_c) / sum; the teacher's scale is the inverse temperature."""

    def probabilities(self, w_star):
        return jax.nn.softmax(w_star, axis=0)


class AbstractLabelNoise(eqx.Module):
    """Law of the noise that is added to a label, in units of `label_noise`."""

    @abc.abstractmethod
    def quantile(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noise as an increasing function of a normal."""

    @abc.abstractmethod
    def mixture(self) -> tuple[Float[np.ndarray, " law"], Float[np.ndarray, " law"]]:
        """Variances of the normal laws that mix to it, and their shares, which sum to 1."""


class Normal(AbstractLabelNoise):
    """N(0, 1)."""

    def quantile(self, z):
        return z

    def mixture(self):
        return np.ones(1), np.ones(1)


class Laplace(AbstractLabelNoise):
    """Of density exp(-|noise|) / 2 (standard deviation sqrt 2)."""

    def quantile(self, z):
        # -log(2 P(|z'| > |z|) / 2): log_ndtr keeps the tails that 1 - u would lose.
        return jnp.sign(z) * (-jnp.log(2.0) - log_ndtr(-jnp.abs(z)))

    def mixture(self):
        """Variances c of the chi-square law of 2 degrees of freedom."""
        c, shares, _ = _chi_square(2.0)
        return c, shares / shares.sum()


def _fixed_number(value):
    # Quantiles come from SciPy, so no tracer will do.
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"degrees_of_freedom must be a Python number, got {value!r}. It is held fixed.")


class Student(AbstractLabelNoise):
    """Student t with `degrees_of_freedom` > 1, a Python number that is held fixed. At 1 and below every risk is infinite. Up to 2
    the variance of the labels is infinite, and with it that of the train loss over samples and runs (not of the gradients, which
    are bounded): trust its mean less than the other observables."""

    degrees_of_freedom: float = eqx.field(converter=_fixed_number, static=True)

    def __check_init__(self):
        cure = "With so heavy a tail the mean |noise|, and with it every risk, is infinite."
        check_real("degrees_of_freedom", self.degrees_of_freedom, minimum=1.0, exclusive=True, cure=cure)

    def quantile(self, z):
        """z, |z| <= 9, times a Chebyshev series in z² for the quantile's inverse hyperbolic sine (in units that cancel the
        nearest singularity), fitted to SciPy's. Relative error below 1e-10."""
        root = self.degrees_of_freedom**0.5

        def fitted(x):
            z = 9.0 * np.sqrt(0.5 * (x + 1))
            return np.arcsinh(stats.t.isf(special.ndtr(-z), self.degrees_of_freedom) / root) / z

        coefficients = jnp.asarray(chebyshev.chebinterpolate(fitted, 120), z.dtype)
        x = 2 * (z / 9.0) ** 2 - 1

        def clenshaw(state, coefficient):
            return (coefficient + 2 * x * state[0] - state[1], state[0]), None

        zeros = jnp.zeros_like(x)
        (last, before), _ = jax.lax.scan(clenshaw, (zeros, zeros), coefficients[:0:-1])
        return root * jnp.sinh(z * (coefficients[0] + x * last - before))

    def mixture(self):
        """Variances degrees_of_freedom / c with c of the chi-square law. The mean loss grows like sqrt(variance), so where the
        tail is heavy what is beyond the last quantile counts: one normal with the share and the mean deviation of the rest."""
        c, shares, least = _chi_square(self.degrees_of_freedom)
        half, cut = 0.5 * self.degrees_of_freedom, 0.5 * least
        share = special.gammainc(half, cut)
        log_mean = special.gammaln(half - 0.5) - special.gammaln(half) + np.log(half) / 2
        deviation = np.exp(log_mean) * special.gammainc(half - 0.5, cut) / share
        variances, shares = np.append(self.degrees_of_freedom / c, deviation**2), np.append(shares, share)
        return variances, shares / shares.sum()


# The short names that tasks take.
BINARY: dict[str, type[AbstractLabels]] = {"sign": Sign, "logistic": Logistic, "flipped": Flipped, "probit": Probit}
CLASSES: dict[str, type[AbstractClassLabels]] = {"argmax": Argmax, "softmax": Softmax}
NOISES: dict[str, type[AbstractLabelNoise]] = {"normal": Normal, "laplace": Laplace, "student": Student}


def named(name: str, law: Any, table: Mapping[str, type], kind: type, parameters: Mapping[str, Any]) -> Any:
    """The argument `name` of a task: a law, or the short name of one in `table`. `parameters` are given beside a short name, and
    go with the law that has a field of that name; None where not given."""
    if not isinstance(law, (str, kind)) or (isinstance(law, str) and law not in table):
        raise ValueError(f"{name} must be one of {tuple(table)} or a dmftopt.tasks.labels.{kind.__name__}, got {law!r}.")
    needed = table[law].__dataclass_fields__ if isinstance(law, str) else {}
    for parameter, value in parameters.items():
        if parameter in needed and value is None:
            raise ValueError(f'{name}="{law}" needs {parameter}. See dmftopt.tasks.labels.{table[law].__name__}.')
        if parameter not in needed and value is not None:
            (owner,) = (short for short, cls in table.items() if parameter in cls.__dataclass_fields__)
            raise ValueError(f'{parameter} goes with {name}="{owner}", not with {name}={law!r}. Drop it.')
    return table[law](**{p: value for p, value in parameters.items() if p in needed}) if isinstance(law, str) else law


_DRAWN = 'Softmax(labels="softmax") draws classes, which have no derivative in the teacher or the features. Hold them fixed.'


def half_normal(dtype) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Nodes on the positive half line, and weights for 2 N(xi; 0, 1)."""
    xi, weights = (jnp.asarray(a, dtype) for a in _PANELS)
    return xi, 2 * weights * norm.pdf(xi)


def _logistic_noise():
    # Logistic noise is 2 K N(0, 1) with K of Kolmogorov's law (Andrews and Mallows 1974). The density of log K decays double
    # exponentially on both sides: the trapezoidal rule with this spacing is exact to rounding.
    k = np.exp(np.arange(-1.75, 1.6, 0.125))
    shares = k * stats.kstwobign.pdf(k)
    return 4 * k**2, shares / shares.sum()


_LOGISTIC_NOISE = _logistic_noise()

# Panels on the positive half line: the narrow ones near 0 resolve label laws and losses as steep as sigmoid(20 z).
_PANELS = panels(np.array([0.0, 0.3, 1.0, 2.0, 3.5, 5.5, 8.5]), 12)

# Gauss-Legendre nodes on (0, 1). With 64 nodes the integral in _quantile is exact to rounding up to teacher scales of about 20
# for logistic labels.
UNIT = panels(np.array([0.0, 1.0]), 64)


def _quantile(law: AbstractLabels, u: Float[Array, "..."], scale: Float[Array, ""]) -> Float[Array, "..."]:
    """Quantiles of the density 2 p(scale z) phi(z), differentiable in the law and in `scale` by the implicit function theorem.

    With E[y | w_star] odd the distribution function is Phi(z) less the integral of E[y | scale x] phi(x) beyond |z|.
    """
    nodes, weights = (jnp.asarray(a, u.dtype) for a in UNIT)
    arrays, static = eqx.partition(law, eqx.is_inexact_array)

    def moment(top, law, scale):
        z = top[..., None] * beside(nodes, top)
        return top * jnp.sum(beside(weights, top) * law.mean(scale * z) * norm.pdf(z), axis=-1)

    def distribution(z, arrays, scale):
        law = eqx.combine(arrays, static)
        return ndtr(z) - (moment(jnp.asarray(9.0, u.dtype), law, scale) - moment(jnp.abs(z), law, scale))

    def quantile(u, guess):
        solver = optimistix.Newton(rtol=tolerance, atol=tolerance)
        # The guess, off by 1e-4 at most, leaves Newton two or three steps; in float32 it may stall at rounding, not diverge.
        return optimistix.root_find(
            lambda z, args: distribution(z, *args[:2]) - args[2], solver, guess, (arrays, scale, u), max_steps=8, throw=False
        ).value

    tolerance = 8 * float(jnp.finfo(u.dtype).eps)
    table = jnp.linspace(-9.0, 9.0, 1025, dtype=u.dtype)
    guess = jax.lax.stop_gradient(jnp.interp(u, distribution(table, arrays, scale), table))
    return jax.vmap(quantile)(u, guess)


def _chi_square(freedom: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Nodes and weights of a rule between extreme quantiles of the law, and the least of these."""
    tails = 10.0 ** np.arange(-16.0, 0.0)
    quantiles = np.concatenate([stats.chi2.ppf(np.append(tails, 0.5), freedom), stats.chi2.isf(tails[::-1], freedom)])
    log_c, weights = panels(np.log(quantiles), 8)
    c = np.exp(log_c)
    return c, weights * c * stats.chi2.pdf(c, freedom), quantiles[0]
