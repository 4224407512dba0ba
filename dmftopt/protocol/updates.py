"""Updates other than plain SGD: what an optimizer does to the gradient of a batch before it is a step.

As d -> infinity at batch sizes of order 1 the gradient of coordinate j is dominated by its noise, of variance lambda_j P / (d B)
with the training power P = E[l²]. Optimizers that divide by its root mean square are SGD with rates of their own: equation (34)
of dmft/README.md.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .._checks import as_number, check_count, check_member, check_real, check_shape, front_door
from .._register import register_part
from .variables import as_variable, number

_TRANSFORMATIONS = {
    "adamw": lambda beta1, beta2, eps: optax.scale_by_adam(beta1, beta2, eps),
    "rmsprop": lambda beta2, eps: optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True),
    "sign": optax.scale_by_sign,
    "normalized": optax.normalize_by_update_norm,
    "clipped": optax.clip_by_global_norm,
}


def transformation(described: dict[str, Any]) -> optax.GradientTransformation:
    """The algorithm of this name and numbers (`Recipe.optimizer`), of the gradient of a batch, without rate and decay."""
    check_member("optimizer", described["name"], _TRANSFORMATIONS)
    return _TRANSFORMATIONS[described["name"]](**{name: value for name, value in described.items() if name != "name"})


class AbstractUpdate(eqx.Module):
    """`adaptive`: the rate of each coordinate is over the root mean square of its gradient. `coordinatewise`: it is over that of
    its feature at least. `changes`: it is the gradient in the fields that is changed, by `gradient`, where that of a batch is
    that of one sample; `jumps`: where that passes through 0. `overlap`: correlation of what moves a coordinate with its
    feature."""

    adaptive: ClassVar[bool] = False
    changes: ClassVar[bool] = False
    jumps: ClassVar[bool] = False
    coordinatewise: ClassVar[bool] = False
    overlap: ClassVar[float] = 1.0

    def gradient(self, l: Float[Array, "m ..."]) -> Float[Array, "m ..."]:
        """What moves the weights in place of the loss's gradient l in the fields, at batch size 1."""
        return l

    @abc.abstractmethod
    def described(self, dimension: int, mean_square_norm: float) -> dict[str, Any]:
        """Name and numbers of the algorithm on raw features of this mean square norm."""

    def transform(self, dimension: int) -> optax.GradientTransformation:
        """The algorithm itself, see `transformation`."""
        return transformation(self.described(dimension, 1.0))

    def rate(self, dimension: int) -> float:
        """The optimizer's own learning rate, over the protocol's."""
        return 1.0

    def raw_rate(self, dimension: int, mean_square_norm: float) -> float:
        """The same on raw features."""
        return self.rate(dimension) / mean_square_norm**0.5


@register_part
@front_door
class Adam(AbstractUpdate):
    """Adam, and with a ridge AdamW (decay is decoupled: theta <- (1 - eta ridge / d) theta beside the update).

    theta_j moves by -alpha m_j / (sqrt(v_j) + eps) with alpha = eta / sqrt(d), eta the protocol's learning rate. In the limit

        theta_j <- theta_j - eta / sqrt(lambda_j V(t)) (gradient of the batch)_j ,    memory dV/dt = P / B - V

    (V bias-corrected) for each column of the student. Where the features' eigenbasis is not that of the coordinates
    (`Problem.basis`) lambda_j is their mean, 1.

    - `memory`: of beta2, in time: 1 / ((1 - beta2) d), `Adam.of(beta2, dimension)`. With 0.999 and d of some hundred it is longer
      than most runs. 0: short on that scale, V = P / B (in `simulate`, sqrt(d) steps).
    - `beta1`: its memory is a few steps, which are no time; `eps`: small against gradients. The limit ignores both. So
      it does what a memory of 1 / (1 - beta2) steps itself fluctuates, of order 1 - beta2. What is left at finite d
      falls like 1 / d (1.5% at d = 400).
    """

    memory: Any = eqx.field(converter=as_variable, default=0.0)
    beta1: float = eqx.field(converter=as_number, default=0.9)
    eps: float = eqx.field(converter=as_number, default=1e-8)
    adaptive: ClassVar[bool] = True
    coordinatewise: ClassVar[bool] = True

    def __check_init__(self):
        check_real("memory", number(self.memory), minimum=0.0, cure="It is a time: 1 / ((1 - beta2) dimension).")
        check_shape("memory", number(self.memory), ((),), "Give one number.")
        for name, top in (("beta1", 1.0), ("eps", np.inf)):
            value = getattr(self, name)
            check_real(name, value, minimum=0.0)
            if np.ndim(value) or not float(value) < top:
                raise ValueError(f"{name} must be one number from 0 to below {top:g}, got {value!r}.")

    @classmethod
    @front_door
    def of(cls, beta2: float, dimension: int, **options: Any) -> "Adam":
        """With the memory of this beta2 in so many dimensions."""
        check_real("beta2", beta2, minimum=0.0, exclusive=True)
        check_count("dimension", dimension)
        if not float(beta2) < 1:
            raise ValueError(f"beta2 must be between 0 and 1, got {beta2!r}. 0.999 is usual.")
        return cls(1 / ((1 - float(beta2)) * dimension), **options)

    def beta2(self, dimension: int) -> Float[Array, ""]:
        steps = jnp.asarray(number(self.memory), dtype=float) * dimension
        return 1 - 1 / jnp.where(steps > 0, jnp.maximum(steps, 1.0), dimension**0.5)

    def described(self, dimension, mean_square_norm):
        return {"name": "adamw", "beta1": number(self.beta1), "beta2": self.beta2(dimension), "eps": self.eps}

    def rate(self, dimension):
        return dimension**-0.5


@register_part
class RMSprop(Adam):
    """Adam without its first moment: `optax.rmsprop(..., bias_correction=True)`. The same limit."""

    def __init__(self, memory: Any = 0.0, eps: float = 1e-8):
        super().__init__(memory, 0.0, eps)

    def described(self, dimension, mean_square_norm):
        return {"name": "rmsprop", "beta2": self.beta2(dimension), "eps": self.eps}


@register_part
class Normalized(AbstractUpdate):
    """Normalized SGD at batch size 1: the gradient over its norm. As ‖x‖ -> 1, that is l -> l / ‖l‖."""

    changes: ClassVar[bool] = True
    jumps: ClassVar[bool] = True

    def gradient(self, l):
        size = jnp.sqrt(jnp.sum(l**2, axis=0, keepdims=True))
        return jnp.where(size > 0, l / jnp.where(size > 0, size, 1.0), 0.0)

    def described(self, dimension, mean_square_norm):
        return {"name": "normalized"}


@register_part
@front_door
class Clipped(AbstractUpdate):
    """SGD at batch size 1 with the gradient clipped to the norm `threshold`: l -> l min(1, threshold / ‖l‖)."""

    threshold: Any = eqx.field(converter=as_variable)
    changes: ClassVar[bool] = True

    def __check_init__(self):
        check_real("threshold", number(self.threshold), minimum=0.0, exclusive=True, cure="It is a norm.")
        check_shape("threshold", number(self.threshold), ((),), "Give one number.")

    def gradient(self, l):
        size = jnp.sqrt(jnp.sum(l**2, axis=0, keepdims=True))
        limit = jnp.asarray(number(self.threshold), l.dtype)
        return l * jnp.where(size > limit, limit / jnp.where(size > limit, size, 1.0), 1.0)

    def described(self, dimension, mean_square_norm):
        return {"name": "clipped", "max_norm": number(self.threshold) * mean_square_norm**0.5}

    def raw_rate(self, dimension, mean_square_norm):
        return 1 / mean_square_norm


@register_part
class Sign(AbstractUpdate):
    """signSGD at batch size 1: theta_j moves by -(eta / sqrt(d)) sign(gradient_j). As sign(x_j l) = sign(x_j) sign(l), and
    sign(x_j) is sqrt(2 / pi) x_j / (its standard deviation) and a rest that nothing else knows, l -> sign(l) with rates as
    Adam's, and noise that is pi / 2 times as strong."""

    changes: ClassVar[bool] = True
    jumps: ClassVar[bool] = True
    coordinatewise: ClassVar[bool] = True
    overlap: ClassVar[float] = (2 / np.pi) ** 0.5

    def gradient(self, l):
        return jnp.sign(l)

    def described(self, dimension, mean_square_norm):
        return {"name": "sign"}

    def rate(self, dimension):
        return dimension**-0.5


def is_adaptive(update: AbstractUpdate | None) -> bool:
    return update is not None and update.adaptive


def is_coordinatewise(update: AbstractUpdate | None) -> bool:
    return update is not None and update.coordinatewise
