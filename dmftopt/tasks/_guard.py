import jax
from jaxtyping import Array


def no_derivative(value: Array, message: str) -> Array:
    """The identity, with a derivative that is an error instead of silently wrong."""

    @jax.custom_jvp
    def identity(value):
        return value

    @identity.defjvp
    def _(primals, tangents):
        raise ValueError(message)

    return identity(value)


def jumping(value: Array, task: str, cure: str) -> Array:
    """The identity, for an argument at which a loss's gradient jumps. Samples that cross the jump carry derivatives of
    expectations that no derivative along a sample's path sees."""
    return no_derivative(
        value,
        f"tasks.{task} has a gradient that jumps, so results have no derivative along the samples' paths. {cure}, or "
        "hold everything fixed (jax.lax.stop_gradient) and take differences of solves.",
    )
