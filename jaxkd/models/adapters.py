"""Networks made of other people's modules: Flax Linen and Flax NNX.

Batch norm of both libraries is made to count the real examples of all devices, as the package's own does:
else padding in the last batch of an epoch, and the number of devices, would change what is learned.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxkd._names import describe_object, kind
from jaxkd.models.layers import Classifier, Outputs, batch_statistics
from jaxkd.models.network import Network, Variables
from jaxkd.models.registry import create, initialize

if TYPE_CHECKING:
    from flax import nnx  # takes half a second to import

# What `as_network` takes.
Like: TypeAlias = "str | nn.Module | nnx.Module | Callable[[nnx.Rngs], nnx.Module] | Network"

Call = Callable[..., Any]

# Names by which modules ask whether they are in training, and the value for each.
MODES: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}

_SEEN = "jaxkd_features"  # the collection of the outputs of submodules
_INITIAL = (
    'initial values must not depend on the images; what is sown goes to the collection "intermediates", or '
    "is returned as a feature: (logits, {name: value})"
)


@dataclasses.dataclass(frozen=True)
class LinenForward:
    """A Linen module as the functions of a network; see `from_linen`."""

    module: nn.Module
    features: tuple[tuple[str, str], ...] = ()
    call: Call | None = None
    axis_name: str | None = None

    def on_axis(self, axis_name: str | None) -> LinenForward:
        """See `Forward`."""
        module = self.module
        if isinstance(module, Classifier):
            module = module.clone(axis_name=axis_name)
        return dataclasses.replace(self, module=module, axis_name=axis_name)

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """See `Forward`; without running the network."""
        method = functools.partial(self._run, train=False, where=None)
        try:
            variables = initialize(self.module, seed=seed, image_shape=image_shape, method=method)
        except flax.errors.LazyInitError as error:
            raise ValueError(f"{type(self.module).__name__}: {_INITIAL}") from error
        # What is sown is a tuple, which grows in every step.
        leaves = jax.tree.leaves(variables, is_leaf=lambda leaf: isinstance(leaf, tuple))
        if any(isinstance(leaf, tuple) for leaf in leaves):
            raise ValueError(f"{type(self.module).__name__}: {_INITIAL}")
        return variables

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        where: jax.Array | None,
        rngs: Mapping[str, jax.Array] | None,
    ) -> tuple[Outputs, Mapping[str, Any]]:
        """See `Forward`."""
        method = functools.partial(self._run, train=train, where=where)
        mutable = [name for name in variables if name != "params"] if train else []
        with nn.intercept_methods(self._interceptor(where if train else None, train)):
            # Streams with other names take the key of "params".
            given = {"params": next(iter(rngs.values())), **rngs} if rngs else None
            output, updates = self.module.apply(
                dict(variables), images, method=method, mutable=[*mutable, _SEEN], rngs=given
            )
        updates = dict(updates)
        found = flax.traverse_util.flatten_dict(
            updates.pop(_SEEN, {}), is_leaf=lambda path, _: path[-1:] == (_SEEN,)
        )
        by_path = {"/".join(path[:-1]): value for path, value in found.items()}
        seen = {name: by_path[path] for name, path in self.features if path in by_path}
        for name, path in self.features:
            # A submodule that exists may have no part in this mode.
            if name not in seen and path not in _paths(variables.get("params", {})):
                raise ValueError(
                    f'feature "{name}": no submodule {path} was called; those with parameters are '
                    f"{', '.join(_paths(variables.get('params', {}))) or 'none'}"
                )
        return outputs_of(output, seen), updates

    def describe(self) -> dict[str, Any]:
        """See `Forward`; the name and the shapes say all of a network by name."""
        about = {} if isinstance(self.module, Classifier) else {"module": describe_object(self.module)}
        return {**about, **({"features": dict(self.features)} if self.features else {})}

    def variables(self, given: Any) -> dict[str, Any]:
        """See `Forward`."""
        return {name: tree for name, tree in given.items() if jax.tree.leaves(tree) or name == "params"}

    given: ClassVar[None] = None

    def _run(self, module: nn.Module, images: jax.Array, *, train: bool, where: jax.Array | None) -> Any:
        if self.call is not None:
            return self.call(module, images, train)
        kind: Any = type(module)
        options: dict[str, Any] = modes(kind, train)
        if "where" in _parameters(kind):
            options["where"] = where
        return module(images, **options)

    def _interceptor(self, where: jax.Array | None, train: bool) -> Any:
        wanted = {path for _, path in self.features}

        def intercept(
            following: Call, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
        ) -> Any:
            module = context.module
            if context.method_name != "__call__":
                return following(*args, **kwargs)
            if train and type(module) is nn.BatchNorm:
                result = _linen_batch_norm(module, following, args, kwargs, where, self.axis_name)
            else:
                result = following(*args, **kwargs)
            if "/".join(module.path) in wanted:
                # As a variable, it leaves what Flax transforms, such as `nn.remat`.
                module.sow(_SEEN, _SEEN, result, init_fn=lambda: None, reduce_fn=lambda _, last: last)
            return result

        return intercept


def _paths(params: Any, prefix: str = "") -> list[str]:
    """The paths of the submodules that have parameters."""
    found = []
    for name, child in params.items():
        if isinstance(child, Mapping):
            found += [f"{prefix}{name}", *_paths(child, f"{prefix}{name}/")]
    return found


def _linen_batch_norm(
    norm: nn.BatchNorm,
    following: Call,
    args: tuple,
    kwargs: dict,
    where: jax.Array | None,
    axis_name: str | None,
) -> jax.Array:
    """Flax's own batch norm, with batch statistics of the real examples of all devices."""
    frozen = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
    frozen = norm.use_running_average if frozen is None else frozen
    if frozen:
        return following(*args, **kwargs)
    x = args[0] if args else kwargs["x"]
    require_last_axis(norm.axis, x.ndim)
    require_no_mask(kwargs.get("mask"))
    running: dict[str, Any] = {name: norm.get_variable("batch_stats", name) for name in ("mean", "var")}
    mean, var, count = batch_statistics(x.astype(jnp.float32), where, axis_name)
    norm.put_variable("batch_stats", "mean", mean)
    norm.put_variable("batch_stats", "var", var)
    # Flax refuses a mode at call time beside one at construction, so the attribute gives it.
    constructed = norm.use_running_average
    object.__setattr__(norm, "use_running_average", True)
    result = following(x)
    object.__setattr__(norm, "use_running_average", constructed)
    for name, new in (("mean", mean), ("var", var)):
        norm.put_variable("batch_stats", name, running_average(running[name], new, norm.momentum, count))
    return result


def running_average(running: jax.Array, new: jax.Array, momentum: float, count: jax.Array) -> jax.Array:
    """A running average; a share without an example says nothing of it."""
    new_average = momentum * running + (1 - momentum) * jax.lax.stop_gradient(new)
    return jnp.where(count > 0, new_average, running)


def require_last_axis(axis: Any, ndim: int) -> None:
    """Raises ValueError unless batch norm keeps the last axis alone."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if {a % ndim for a in axes} != {ndim - 1}:
        raise ValueError(
            f"batch norm must have its channels on the last axis, got axis={axis}; images are [B, H, W, C]"
        )


def require_no_mask(mask: Any) -> None:
    """Raises ValueError for a batch norm's own mask: it counts the real examples."""
    if mask is not None:
        raise ValueError(
            "batch norm with mask= cannot be trained: it counts the real examples of the batch, and no others"
        )


def modes(module: Any, train: bool) -> dict[str, bool]:
    """The arguments by which a class of modules asks whether it is in training."""
    known = _parameters(module)
    return {name: mode(train) for name, mode in MODES.items() if name in known}


@functools.cache
def _parameters(module: Any) -> frozenset[str]:
    return frozenset(inspect.signature(module.__call__).parameters)


def outputs_of(result: Any, seen: Mapping[str, jax.Array]) -> Outputs:
    """Outputs of a module's result: logits, (logits, features), `Outputs`, or something with `.logits`.

    Logits are float32 at least: a cross-entropy in bfloat16 would have two digits.
    """
    features: Mapping[str, Any] = {}
    logits = getattr(result, "logits", result)
    if isinstance(result, Outputs):
        features = result.features
    elif isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        logits, features = result
    elif getattr(logits, "ndim", None) != 2:
        found = list(logits.shape) if hasattr(logits, "shape") else type(result).__name__
        raise ValueError(
            f"a network must return logits [B, K], (logits, {{name: feature}}) or Outputs, got {found}; "
            "bridge it with call="
        )
    logits = jnp.asarray(logits)
    return Outputs(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), {**features, **seen})


def from_linen(
    module: nn.Module,
    *,
    name: str | None = None,
    features: Mapping[str, str] | None = None,
    call: Call | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Network:
    """Makes a network of a Flax Linen module, with or without batch norm, dropout or other collections.

    Args:
      module: called as `module(images)`, with `train=`, `training=`, `is_training=`, `deterministic=`,
        `use_running_average=` or `where=` if its `__call__` has a parameter of that name.  Images are
        normalised floats `[B, H, W, C]`.  It returns logits `[B, K]`, or `(logits, {name: feature})`, or an
        `Outputs`, or anything with `.logits`.
      name: for tables and for the run's identity; by default that of its class.
      features: names for what submodules return: `{"stage1": "block1", "pooled": "encoder/pool"}`.
      call: `(module, images, train) -> result`, for modules that are called in another way.
      mean: of each channel of pixels in [0, 1]; by default the data set's.
      std: likewise.

    Batch norm of Flax counts the real examples of all devices, whatever its `axis_name` is.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from jaxkd import models
    >>> class Tiny(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
    ...         return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(x))
    >>> network = models.from_linen(Tiny(), features={"pooled": "hidden"})
    >>> variables = network.init(seed=0, image_shape=(4, 4, 1))
    >>> outputs, _ = network.apply(variables, jnp.zeros((2, 4, 4, 1)))
    >>> outputs.logits.shape, outputs.features["pooled"].shape
    ((2, 3), (2, 8))
    """
    forward = LinenForward(module, tuple((features or {}).items()), call)
    return Network(name or type(module).__name__, forward, mean, std)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    name: str | None = None,
    call: Call | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Network:
    """Makes a network of a Flax NNX module.

    Args:
      module: a function of `nnx.Rngs` that makes the module, so that every seed has initial values of its
        own; or a module: its values are then the initial ones for every seed.
      name: for tables and for the run's identity; by default that of its class or function.
      call: `(module, images, train) -> result`; by default `module(images)`, after `module.train()` or
        `module.eval()`, with `train=` and the like as for `from_linen`.  What it returns is as for that.
      mean: of each channel of pixels in [0, 1]; by default the data set's.
      std: likewise.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxkd import models
    >>> class Tiny(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.dense = nnx.Linear(16, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.dense(x.reshape(len(x), -1))
    >>> network = models.from_nnx(Tiny)
    >>> outputs, _ = network.apply(network.init(seed=0, image_shape=(4, 4, 1)), jnp.zeros((2, 4, 4, 1)))
    >>> outputs.logits.shape
    (2, 3)
    """
    from flax import nnx

    from jaxkd.models.nnx_forward import NNXForward

    if isinstance(module, nnx.Module):
        return Network(name or type(module).__name__, NNXForward(module, call), mean, std)
    make = module
    while isinstance(make, functools.partial):
        make = make.func
    own = getattr(make, "__name__", type(make).__name__)
    return Network(name or own, NNXForward(module, call), mean, std)


def as_network(thing: Like, num_classes: int, *, dtype: Any = jnp.float32) -> Network:
    """The network that a student is given as.

    Args:
      thing: a name of `models.names()`, a Flax Linen module, an NNX module or a function that makes one, or a
        `Network`.
      num_classes: number of logits, for a name.
      dtype: of the activations, for a name; an own module has its own.

    Raises:
      ValueError: the name is unknown, or `dtype` is given for an own module.
      TypeError: it is something else.
    """
    if isinstance(thing, str):
        return Network(thing, LinenForward(create(thing, num_classes, dtype)))
    if dtype != jnp.float32:
        raise ValueError(
            f"precision {jnp.dtype(dtype).name} is for networks by name; set the type in your own module, "
            "and leave precision at float32"
        )
    if isinstance(thing, Network):
        return thing
    if isinstance(thing, nn.Module):
        return from_linen(thing)
    nnx_or_none = sys.modules.get("flax.nnx")  # where it was not imported, there is no module of it
    is_linen = isinstance(thing, type) and issubclass(thing, nn.Module)
    if (callable(thing) and not is_linen) or (nnx_or_none and isinstance(thing, nnx_or_none.Module)):
        return from_nnx(thing)
    raise TypeError(
        "a student must be the name of a model, a Flax Linen module, an NNX module, a function that makes "
        f"one, or a Network, got {kind(thing)}"
    )
