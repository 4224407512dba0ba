"""Real data, and SGD on them as anyone would run it: plain optax on raw features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """tanh(W pixels + b) of scikit-learn's 8x8 digits, and +1 for odd, -1 for even."""
    images, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    pixels = np.asarray(images) / 16.0
    weights = rng.normal(size=(pixels.shape[1], count)) * np.sqrt(3.0 / pixels.shape[1])
    x = np.tanh((pixels - pixels.mean(axis=0)) @ weights * 2.0 + 0.5 * rng.normal(size=count))
    return x, np.where(np.asarray(classes) % 2 == 1, 1.0, -1.0)


def breast_cancer(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """tanh(W x + b) of scikit-learn's 30 standardized measurements of 569 tumors, and +1 for benign, -1 for malignant."""
    raw, classes = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(seed)
    raw = np.asarray(raw)
    standardized = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    weights = rng.normal(size=(raw.shape[1], count)) / np.sqrt(raw.shape[1])
    return np.tanh(standardized @ weights + 0.5 * rng.normal(size=count)), np.where(np.asarray(classes) == 1, 1.0, -1.0)


def split(x: np.ndarray, y: np.ndarray, train_size: int, seed: int) -> list[jax.Array]:
    """Features and labels of a random training set, then of the rest, all less the means of the training set."""
    order = np.random.default_rng(1000 + seed).permutation(len(y))
    train, test = order[:train_size], order[train_size:]
    center, label_center = x[train].mean(axis=0), y[train].mean()
    parts = (x[train] - center, y[train] - label_center, x[test] - center, y[test] - label_center)
    return [jnp.asarray(a, dtype=float) for a in parts]


def follow(splits, keys, recipe, records: int, shuffled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """SGD that follows a `dmftopt.Recipe`, by optax, on each of several splits (arrays with a leading axis): test mean squared
    errors at `records` + 1 equally spaced times, and the final shares of wrong signs. `shuffled`: in epochs, as data loaders do
    it, or drawn with replacement."""
    arrays = [jnp.asarray(a) for a in (recipe.learning_rate, recipe.batch_size, recipe.weight_decay)]
    errors, wrong = _follow_all(
        *splits,
        keys,
        *(a.astype(float) if a.dtype.kind == "f" else a for a in arrays),
        len(recipe),
        records=records,
        visits=int(recipe.batch_size.sum()) if shuffled else 0,
    )
    return np.asarray(errors), np.asarray(wrong)[:, -1]


@functools.partial(jax.jit, static_argnames=("records", "visits"))
def _follow_all(x_train, y_train, x_test, y_test, keys, rate, batch, decay, steps, *, records, visits):
    axes = (0, 0, 0, 0, 0, None, None, None, None)
    one = functools.partial(_follow, records=records, visits=visits)
    return jax.vmap(one, in_axes=axes)(x_train, y_train, x_test, y_test, keys, rate, batch, decay, steps)


def _follow(x_train, y_train, x_test, y_test, key, rate, batch, decay, steps, *, records: int, visits: int):
    """With optax: one entry per step of learning rate, whole batch size and weight decay. `visits`: in all, in epochs; 0 for
    draws with replacement."""
    samples = x_train.shape[0]
    epochs = jax.random.split(jax.random.fold_in(key, steps), max(1, -(-visits // samples)))
    queue = jax.vmap(lambda key: jax.random.permutation(key, samples))(epochs).ravel()
    starts = jnp.cumsum(batch) - batch
    optimizer = optax.chain(optax.add_decayed_weights(lambda k: decay[k]), optax.sgd(lambda k: rate[k]))

    def step(k, state):
        theta, optimizer_state = state

        def add(j, gradient):
            if visits:
                i = queue[starts[k] + j]
            else:
                i = jax.random.randint(jax.random.fold_in(jax.random.fold_in(key, k), j), (), 0, samples)
            return gradient + (x_train[i] @ theta - y_train[i]) * x_train[i]

        gradient = jax.lax.fori_loop(0, batch[k], add, jnp.zeros_like(theta)) / batch[k]
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, theta)
        return optax.apply_updates(theta, updates), optimizer_state

    def record(state, span):
        state = jax.lax.fori_loop(span[0], span[1], step, state)
        return state, state[0]

    theta = jnp.zeros(x_train.shape[1])
    edges = jnp.round(jnp.linspace(0, 1, records + 1) * steps).astype(int)
    _, path = jax.lax.scan(record, (theta, optimizer.init(theta)), jnp.stack([edges[:-1], edges[1:]], axis=1))
    fields = jnp.concatenate([theta[None], path]) @ x_test.T
    return jnp.mean((fields - y_test) ** 2, axis=1), jnp.mean(fields * y_test <= 0, axis=1)
