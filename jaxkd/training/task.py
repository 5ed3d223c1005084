"""The constants of a run: networks, method, optimiser, augmentations, length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.data.augment import Augmentation, stream_key
from jaxkd.methods import Inputs, Method, Terms
from jaxkd.models import Network, Outputs


@dataclasses.dataclass(frozen=True)
class Task:
    """A run's constants; the steps are pure functions of them and of arrays.

    Attributes:
      student: the network to train.
      teacher: None for a method that reads nothing.
      method: defines the loss.
      optimizer: for the tree `{"student": ..., "method": ...}`.
      augmentations: by view; the views are the method's.
      seed: the run's seed.
      num_epochs: passes over the training images.
      steps_per_epoch: updates per epoch.
      accumulate: number of micro-batches per update.  Batch norm, and losses on a whole batch, see one
        micro-batch at a time (of all devices).
      average: whether to average the student's other collections over devices, weighted by examples: needed
        if each device has its own, as with batch norm per device.
      code: tells the programs of users' objects apart; see `jaxkd.runs.identity.fingerprint`.
      ema: decay of the moving average that is evaluated and saved, of the student's variables and those of a
        method that predicts; (1 + step) / (10 + step) as long as that is smaller; None for no average.
    """

    student: Network
    teacher: Network | None
    method: Method
    optimizer: optax.GradientTransformation
    augmentations: tuple[tuple[str, Augmentation], ...]
    seed: int
    num_epochs: int
    steps_per_epoch: int
    accumulate: int = 1
    average: bool = False
    code: str = ""
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.method.reads and self.teacher is None:
            raise ValueError(
                f"the method reads {', '.join(self.method.reads)} from a teacher, but there is none"
            )

    @property
    def total_steps(self) -> int:
        """The total number of updates."""
        return self.num_epochs * self.steps_per_epoch

    def example_inputs(
        self, student: Any, teacher: Any, image_shape: tuple[int, int, int], batch_size: int = 2
    ) -> Inputs:
        """Shapes of the method's inputs, without running a network.

        Args:
          student: the student's variables.
          teacher: the teacher's variables; None without a teacher.
          image_shape: height, width, channels.
          batch_size: number of examples.
        """

        def outputs(network: Network, variables: Any) -> Outputs:
            return network.output_shapes(variables, image_shape, batch_size)

        views = [view for view, _ in self.augmentations]
        shapes: dict[str, Any] = {
            "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "ids": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "where": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
            "epoch": jax.ShapeDtypeStruct((), jnp.int32),
        }
        return Inputs(
            student=dict.fromkeys(views, outputs(self.student, student)),
            teacher={} if self.teacher is None else dict.fromkeys(views, outputs(self.teacher, teacher)),
            num_epochs=self.num_epochs,
            **shapes,
        )

    def init_method(self, inputs: Inputs, constants: Mapping[str, Any]) -> tuple[dict[str, Any], Terms]:
        """The method's variables at step 0 by collection, and the shapes of its terms.

        Args:
          inputs: shapes, as from `example_inputs`.
          constants: arrays for the collection "constants".
        """
        key = stream_key(self.seed, "method")
        rngs = {name: key for name in ("params", "sample", "dropout")}
        given = {"constants": constants} if constants else {}

        def init(seen: Inputs) -> Any:
            # With the collection of constants, which `Module.init` would not accept.
            return self.method.apply(given, seen, rngs=rngs, mutable=True)

        terms, made = jax.eval_shape(init, inputs)
        made.pop("constants", None)
        if made:
            # Only if needed: most methods learn nothing, and this compiles a program for every shape.
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs)
            made = dict(jax.jit(lambda seen: init(seen)[1])(zeros))
            made.pop("constants", None)
            terms, _ = jax.eval_shape(
                lambda seen: self.method.apply({**made, **given}, seen, rngs=rngs, mutable=list(made)), inputs
            )
        return made, terms
