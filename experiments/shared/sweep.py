"""Independent cells of an experiment: in this process or on a Dask cluster, kept on disk one by one, resumed after a stop."""

import contextlib
import functools
import json
import operator
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cloudpickle
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

from .results import write_json


def run(
    function: Callable[..., Any],
    cells: Mapping[str, Mapping[str, Any]],
    out: Path,
    settings: Mapping[str, Any],
    cluster: str | None = None,
) -> dict[str, Any]:
    """`function(**settings, **cell)` of every cell, by name, in the order of `cells`. Arguments and results are JSON values.

    A finished cell is at once in `out`/<name>.json, whole or not at all, together with all its arguments. A later call with
    the same arguments reads it instead of computing (changes of the code go unnoticed: delete the file). Where a cell raises,
    its traceback is printed and the others go on; in the end SystemExit names those that failed.

    `cluster`: None, one cell after the other in this process; "local", Dask workers on this machine, each a process of its own,
    one per core; or the address of a Dask scheduler, "tcp://host:port". Its workers need dmftopt and the same versions of
    everything installed, but neither the experiment's files nor a common disk. `function` must configure JAX itself: on
    workers nothing else of its module is run.
    """
    asked = {name: _as_json({"settings": settings, "cell": cell}) for name, cell in cells.items()}
    missing = [name for name in cells if _read(out, name).get("arguments") != asked[name]]
    failed = []
    bar = tqdm(total=len(cells), initial=len(cells) - len(missing), desc=out.name, unit="cell", disable=None)
    outcomes = _outcomes(function, {name: {**settings, **cells[name]} for name in missing}, cluster)
    with bar, contextlib.closing(outcomes):
        for name, outcome in outcomes:
            try:
                result, seconds = outcome()
                write_json(_path(out, name), {"arguments": asked[name], "seconds": seconds, "result": result})
            except Exception as error:
                failed.append(name)
                bar.write(f"{name} failed:\n{''.join(traceback.format_exception(error))}", file=sys.stderr)
            bar.set_postfix_str(name)
            bar.update()
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}. The others are kept in {out}.")
    return {name: _read(out, name)["result"] for name in cells}


def over_devices(function: Callable[..., Any], *arrays: Any, **fixed: Any) -> Any:
    """`function(*entries, **fixed)` compiled and vmapped over the first axis of the arrays, which is split over all of this
    process's devices. The same function, shapes and fixed arguments (hashable) are compiled once.

    The last entry is repeated to fill the devices."""
    devices = jax.local_devices()
    size = len(arrays[0])
    mesh = jax.make_mesh((len(devices),), ("sweep",), axis_types=(AxisType.Auto,), devices=devices)
    spread = NamedSharding(mesh, PartitionSpec("sweep"))
    index = jnp.minimum(jnp.arange(size + -size % len(devices)), size - 1)
    split = [jax.device_put(jnp.asarray(a)[index], spread) for a in arrays]
    return jax.tree.map(lambda a: a[:size], _mapped(function, tuple(fixed.items()), *split))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(function, fixed, *arrays):
    return jax.vmap(functools.partial(function, **dict(fixed)))(*arrays)


def _outcomes(function, calls: dict[str, dict], cluster: str | None) -> Generator[tuple[str, Callable[[], Any]]]:
    """Names of cells, as they finish, and what returns (result, seconds) or raises."""
    if cluster is None or not calls:
        for name, arguments in calls.items():
            yield name, lambda arguments=arguments: _timed(function, arguments)
        return
    import distributed

    # What workers cannot import travels by value: all of experiments/, and the package of the function.
    for name in {__name__.partition(".")[0], function.__module__.partition(".")[0]} - {"__main__"}:
        cloudpickle.register_pickle_by_value(sys.modules[name])
    with contextlib.ExitStack() as stack:
        if cluster == "local":
            options: Any = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
            local = distributed.LocalCluster(**options)
            client = stack.enter_context(distributed.Client(stack.enter_context(local)))
        else:
            client = stack.enter_context(distributed.Client(cluster))
        # By cloudpickle itself, for distributed prefers pickle, by reference. Unpickled once per worker, as a result like any
        # other: with every call it would be a new function, which JAX compiles again. Not pure, that is under random keys: no
        # other client of the scheduler is given these results.
        shipped = client.submit(pickle.loads, cloudpickle.dumps(functools.partial(_timed, function)), pure=False)
        futures = {client.submit(operator.call, shipped, arguments, pure=False): name for name, arguments in calls.items()}
        for future in distributed.as_completed(futures):
            yield futures[future], future.result


def _timed(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return function(**arguments), time.perf_counter() - started


def _path(out: Path, name: str) -> Path:
    return out / f"{quote(name, safe=' ,=()+')}.json"


def _read(out: Path, name: str) -> dict[str, Any]:
    """What is stored of a cell; nothing if it is not there or not readable."""
    try:
        return json.loads(_path(out, name).read_text())
    except (OSError, ValueError):
        return {}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))
