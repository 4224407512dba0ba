from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from .._checks import as_number, check_count, check_real, check_shape, front_door
from ..numerics.quadrature import safe_sqrt
from ._base import AbstractTask

ACTIVATIONS: dict[str, Callable] = {
    "erf": lambda r: jax.lax.erf(r / 2**0.5),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "quadratic": lambda r: r**2,
    "linear": lambda r: r,
}


@front_door
class Committee(AbstractTask):
    """Two-layer network with a fixed second layer, learning from another one or from any function of the teacher's fields:

        f(r) = sum_a second_layer_a sigma(r_a),   y = target(w_star) + label_noise N(0, 1),   loss = (f(r) - y)² / 2

    with target(w_star) = sum_b teacher_layer_b sigma(w_star_b) unless `target` is given.

    - `hidden`, `teacher_hidden`: numbers m and m_star of hidden units (of teacher fields, where `target` is given).
    - `activation`: "erf" (erf(r / sqrt 2), as in Saad and Solla), "relu", "tanh", "quadratic" (r²), "linear", or a function
      of JAX arrays, elementwise. The test risk is a closed form for all named ones but "tanh", otherwise a quadrature (8192 fixed
      points).
    - `second_layer` (hidden,), `teacher_layer` (teacher_hidden,): fixed weights, all 1 by default. Other scalings, mean field
      for instance, are a matter of these.
    - `target`: function of the teacher fields (m_star,) -> scalar.
    - `label_noise`: standard deviation, in the units of the labels.
    - `kink`: width over which jumps of sigma' are differentiated, see `AbstractTask.kink_width`. By default 0.1 for "relu" and 0
      otherwise; give one where your own activation has kinks.

    Hidden units specialize only if something tells them apart: give the student different entries through
    `Problem(initial_correlation=...)`, or unequal second layers; otherwise all are equal in law and stay so. Sources: Saad and
    Solla, Phys. Rev. E 52 (1995) 4225; Goldt et al., arXiv:1906.08632; Cho and Saul, NIPS 2009 (arc-cosine kernel).
    """

    hidden: int = eqx.field(static=True)
    teacher_hidden: int = eqx.field(static=True)
    activation: str | Callable = eqx.field(static=True, default="erf")
    second_layer: Any = eqx.field(converter=as_number, default=None)
    teacher_layer: Any = eqx.field(converter=as_number, default=None)
    target: Callable | None = eqx.field(static=True, default=None)
    label_noise: Any = eqx.field(converter=as_number, default=0.0)
    kink: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.kink is not None and not (isinstance(self.kink, (int, float)) and 0 <= self.kink < float("inf")):
            raise ValueError(f"kink must be a Python number >= 0, got {self.kink!r}. It is a width.")
        check_count("hidden", self.hidden)
        check_count("teacher_hidden", self.teacher_hidden)
        if not callable(self.activation) and not (isinstance(self.activation, str) and self.activation in ACTIVATIONS):
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)} or a function, got {self.activation!r}.")
        for name, units in (("second_layer", self.hidden), ("teacher_layer", self.teacher_hidden)):
            value = getattr(self, name)
            if value is not None:
                check_real(name, value)
                check_shape(name, value, ((units,),), "Give one weight per hidden unit.")
        if self.target is not None and not callable(self.target):
            raise TypeError(f"target must be a function of the teacher fields, got {self.target!r}.")
        if self.target is not None and self.teacher_layer is not None:
            raise ValueError("teacher_layer has no part in a target of your own. Drop it.")
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is a standard deviation.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")

    @property
    def columns(self):
        return self.hidden

    @property
    def teacher_columns(self):
        return self.teacher_hidden

    @property
    def kink_width(self):
        return (0.1 if self.activation == "relu" else 0.0) if self.kink is None else float(self.kink)

    @property
    def jumps(self):
        """Of a unit that a kick turns on or off only the residual's share jumps: second order in practice."""
        return False

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def _sigma(self, r: Array) -> Array:
        return (ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation)(r)

    def _layers(self, dtype) -> tuple[Array, Array]:
        layers = ((self.second_layer, self.hidden), (self.teacher_layer, self.teacher_hidden))
        first, second = (jnp.ones(units, dtype) if v is None else jnp.asarray(v, dtype) for v, units in layers)
        return first, second

    def loss(self, r, y):
        return 0.5 * (self._layers(r.dtype)[0] @ self._sigma(r) - y) ** 2

    def label(self, w_star, noise):
        teacher = self._layers(w_star.dtype)[1]
        clean = teacher @ self._sigma(w_star) if self.target is None else self.target(w_star)
        return clean + jnp.asarray(self.label_noise, w_star.dtype) * ndtri(noise)

    def test_risk(self, Q, O, rho):
        """(v^T K(Q) v - 2 v^T K(O) u + u^T K(rho) u + label_noise²) / 2 with the kernel K of the activation, E[sigma sigma]."""
        if self.target is not None or not (isinstance(self.activation, str) and self.activation in KERNELS):
            return super().test_risk(Q, O, rho)
        kernel = KERNELS[self.activation]
        weights = jnp.concatenate([a * s for a, s in zip(self._layers(Q.dtype), (1.0, -1.0), strict=True)])
        covariance = jnp.block([[Q, O], [O.T, rho]])
        own = jnp.diagonal(covariance)
        return 0.5 * (weights @ kernel(covariance, own[:, None], own[None, :]) @ weights + self.label_noise**2)

    def moments(self, Q, O, rho):
        """Closed for "erf" (Saad and Solla), with l_a = second_layer_a sigma'(w_a) (f(w) - y)."""
        if self.target is not None or self.activation != "erf":
            return None
        first, second = self._layers(Q.dtype)
        signed, C = jnp.concatenate([first, -second]), jnp.block([[Q, O], [O.T, rho]])
        with_fields = first[:, None] * (_erf_three(C)[: self.hidden] @ signed)
        slopes = jnp.outer(first, first) * _erf_slopes(Q)
        # dl_a / dw_b, with sigma''(w) = -w sigma'(w).
        curvature = slopes - jnp.diag(jnp.diagonal(with_fields))
        # Label noise adds to (f - y)² only.
        four = jnp.einsum("abcd,c,d->ab", _erf_four(C, self.hidden), signed, signed)
        power = jnp.outer(first, first) * four + jnp.asarray(self.label_noise, Q.dtype) ** 2 * slopes
        return curvature, with_fields[:, self.hidden :], power


def _erf_three(C: Float[Array, "f f"]) -> Float[Array, "f f f"]:
    """E[sigma'(x_i) x_k sigma(x_j)], indices in this order."""
    c = jnp.diagonal(C)
    ii, ij, ik, kj = 1 + c[:, None, None], C[:, None, :], C[:, :, None], C[None]
    return 2 / jnp.pi * (kj * ii - ik * ij) / (ii * jnp.sqrt(ii * (1 + c[None, None, :]) - ij**2))


def _erf_slopes(Q: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """E[sigma'(x_i) sigma'(x_k)]."""
    c = 1 + jnp.diagonal(Q)
    return 2 / jnp.pi / jnp.sqrt(c[:, None] * c[None] - Q**2)


def _erf_four(C: Float[Array, "f f"], m: int) -> Float[Array, "m m f f"]:
    """E[sigma'(x_a) sigma'(x_b) sigma(x_c) sigma(x_d)] for a, b among the first m."""
    c = 1 + jnp.diagonal(C)
    a, b, ab = c[:m, None, None, None], c[None, :m, None, None], C[:m, :m, None, None]
    ac, ad, bc, bd = C[:m, None, :, None], C[:m, None, None, :], C[None, :m, :, None], C[None, :m, None, :]
    small = a * b - ab**2

    def edge(to_a, to_b, own):
        return small * own - to_b**2 * a - to_a**2 * b + 2 * ab * to_a * to_b

    mixed = small * C[None, None] - bc * bd * a - ac * ad * b + ab * (ac * bd + ad * bc)
    root = jnp.sqrt(edge(ac, bc, c[None, None, :, None]) * edge(ad, bd, c[None, None, None, :]))
    return 4 / jnp.pi**2 / jnp.sqrt(small) * jnp.arcsin(mixed / root)


def _erf_kernel(c: Array, a: Array, b: Array) -> Float[Array, "..."]:
    return 2 / jnp.pi * jnp.arcsin(c / jnp.sqrt((1 + a) * (1 + b)))


def _relu_kernel(c: Array, a: Array, b: Array) -> Float[Array, "..."]:
    scale = safe_sqrt(a) * safe_sqrt(b)
    return scale * _arc_cosine(c / jnp.where(scale > 0, scale, 1.0)) / (2 * jnp.pi)


@jax.custom_jvp
def _arc_cosine(cosine: Array) -> Array:
    """sin(angle) + (pi - angle) cos(angle), smooth up to a cosine of 1, where arccos alone is not."""
    cosine = jnp.clip(cosine, -1.0, 1.0)  # rounding only
    return jnp.sqrt(1 - cosine**2) + (jnp.pi - jnp.arccos(cosine)) * cosine


@_arc_cosine.defjvp
def _(primals, tangents):
    (cosine,), (tangent,) = primals, tangents
    return _arc_cosine(cosine), (jnp.pi - jnp.arccos(jnp.clip(cosine, -1.0, 1.0))) * tangent


# E[sigma(u) sigma(v)] from the covariance c and the variances a, b of u and v.
KERNELS: dict[str, Callable] = {
    "erf": _erf_kernel,
    "relu": _relu_kernel,
    "quadratic": lambda c, a, b: a * b + 2 * c**2,
    "linear": lambda c, a, b: c,
}
