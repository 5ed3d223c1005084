"""The first stage of MEKD: an image generator, trained against a teacher that gives only answers.

A generator and a discriminator train against each other on a part of the training images.  The generator is
also rewarded for images on which the teacher is confident, weighted by the discriminator's log-probability.
No gradient flows through the teacher, which may be a remote service.  It runs on one device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import data as datasets
from jaxkd import teachers
from jaxkd.data.augment import stream_key
from jaxkd.data.order import batches, epoch_order
from jaxkd.methods.black_box import Generated, as_pixels, from_pixels
from jaxkd.models.dcgan import Discriminator, Generator
from jaxkd.progress import Say, print_line
from jaxkd.runs.checkpoint import Checkpoints, read_newest
from jaxkd.runs.config import GeneratorConfig
from jaxkd.runs.record import Record
from jaxkd.runs.run import names_and_objects, options_of_call
from jaxkd.signals import Stopped, StopRequest

_KIND = "generator"


@flax.struct.dataclass
class GeneratorState:
    """Both networks and their optimisers after `step` updates, and the sums of the epoch's losses."""

    step: jax.Array
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    generator_opt: Any
    discriminator_opt: Any
    sums: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Game:
    """The constants: the networks, the optimiser, and the use of the teacher's answers."""

    generator: Generator
    discriminator: Discriminator
    latent: int
    optimizer: optax.GradientTransformation
    weight: float
    response: str

    def init(self, seed: int) -> GeneratorState:
        """The state at step 0."""
        keys = jax.random.split(stream_key(seed, _KIND))
        noise = jnp.zeros((1, self.latent))
        generator = dict(self.generator.init(keys[0], noise))
        images = jnp.zeros((1, *self.generator.image_shape))
        discriminator = dict(self.discriminator.init(keys[1], images))
        return GeneratorState(
            jnp.zeros((), jnp.int32),
            generator,
            discriminator,
            self.optimizer.init(generator["params"]),
            self.optimizer.init(discriminator["params"]),
            dict.fromkeys(("discriminator", "adversarial", "response"), jnp.zeros(())),
        )

    def discriminator_loss(
        self, params: Any, stats: Any, real: jax.Array, fake: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The summed cross-entropy of real and generated images, and the batch statistics after both."""
        odds, stats = self._judge({"params": params, **stats}, real, jax.random.fold_in(key, 0))
        real_loss = jnp.mean(jax.nn.softplus(-odds))
        odds, stats = self._judge({"params": params, **stats}, fake, jax.random.fold_in(key, 1))
        return real_loss + jnp.mean(jax.nn.softplus(odds)), stats

    def generator_loss(
        self, params: Any, stats: Any, judge: Any, noise: jax.Array, answer: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """The adversarial loss plus `weight` times the mean of -a log(D + 1e-5), a the confidence."""
        images, stats = self.generator.apply(
            {"params": params, **stats}, noise, train=True, mutable=["batch_stats"]
        )
        odds, judge_stats = self._judge(judge, images, jax.random.fold_in(key, 2))
        adversarial = jnp.mean(jax.nn.softplus(-odds))
        again, judge_stats = self._judge({**judge, **judge_stats}, images, jax.random.fold_in(key, 3))
        sureness = self.sureness(answer(jax.lax.stop_gradient(images)))
        real = jnp.log(jax.nn.sigmoid(again) + 1e-5)
        # The published code multiplies a row by a column: every answer counts for every image.
        response = -jnp.mean(sureness[:, None] * real if self.response == "index" else sureness * real)
        loss = adversarial + self.weight * response
        return loss, ((stats, judge_stats), {"adversarial": adversarial, "response": response})

    def sureness(self, logits: jax.Array) -> jax.Array:
        """The teacher's confidence in each image `[B]`."""
        if self.response == "index":
            return jnp.argmax(logits, -1).astype(jnp.float32)
        return jnp.max(logits if self.response == "logit" else jax.nn.softmax(logits), axis=-1)

    def _make(self, variables: Any, noise: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        images, stats = self.generator.apply(variables, noise, train=True, mutable=["batch_stats"])
        return images, dict(stats)

    def _judge(self, variables: Any, images: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        odds, stats = self.discriminator.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return odds, dict(stats)

    def step(self, state: GeneratorState, images: jax.Array, key: jax.Array, answer: Any) -> GeneratorState:
        """Updates the discriminator, then the generator, each with its own noise.

        Args:
          state: the state before the step.
          images: real images, uint8 `[B, H, W, C]`.
          key: the run's random key.
          answer: maps images in [-1, 1] to the teacher's logits.
        """
        key = jax.random.fold_in(key, state.step)
        noise = jax.random.normal(key, (2, len(images), self.latent))
        fake, _ = self._make(state.generator, noise[0])
        judge, opt = dict(state.discriminator), state.discriminator_opt
        params, stats = judge.pop("params"), judge
        (loss, stats), gradient = jax.value_and_grad(self.discriminator_loss, has_aux=True)(
            params, stats, from_pixels(images), fake, key
        )
        updates, opt = self.optimizer.update(gradient, opt, params)
        judge = {"params": optax.apply_updates(params, updates), **stats}

        made = dict(state.generator)
        params, stats = made.pop("params"), made
        (_, ((stats, judge_stats), parts)), gradient = jax.value_and_grad(self.generator_loss, has_aux=True)(
            params, stats, judge, noise[1], answer, key
        )
        updates, generator_opt = self.optimizer.update(gradient, state.generator_opt, params)
        return GeneratorState(
            state.step + 1,
            {"params": optax.apply_updates(params, updates), **stats},
            {**judge, **judge_stats},
            generator_opt,
            opt,
            {name: state.sums[name] + value for name, value in {"discriminator": loss, **parts}.items()},
        )


def train_generator(
    config: GeneratorConfig | None = None,
    *,
    teacher: str | teachers.Teacher | None = None,
    data: str | datasets.Dataset | None = None,
    say: Say = print_line,
    **options: Any,
) -> Path:
    """Trains the generator of MEKD's first stage, or resumes its training.

    Args:
      config: the options; or pass them by keyword.
      teacher: a name, a folder, or a `Teacher`; see `teachers.from_function` for a remote service.
      data: a name, or a `Dataset`.
      say: callback for progress lines.
      **options: the fields of `GeneratorConfig`.

    Returns:
      The folder, for `--method mekd --method.generator FOLDER`.

    Raises:
      Stopped: a signal arrived; a checkpoint was saved, and the same call resumes.
      ValueError: the teacher does not fit the data, the image size is not a multiple of 4, or the folder
        holds something else.
    """
    named, objects = names_and_objects(teacher=teacher, data=data)
    config = options_of_call(GeneratorConfig, config, {**named, **options}, objects)
    known = objects.get("teacher") or teachers.load(config.teacher)
    dataset = objects.get("data") or datasets.load(config.data, data_dir=config.data_dir)
    known.require_fit(dataset)
    game = _game(config, dataset)
    split = dataset.splits["train"]
    if not isinstance(split, datasets.Split):
        raise ValueError(f"{dataset.name} is streamed; use data that fit into memory")
    ids = at_hand(len(split), config.fraction, config.seed)
    per_epoch = -(-len(ids) // config.batch_size)
    total = per_epoch * config.epochs
    options = {n: v for n, v in config.decisive().items() if n not in ("out", "teacher", "data")}
    identity = {
        "stage": _KIND,
        **options,
        "blocks": game.discriminator.blocks,
        "teacher_digest": known.digest,
        **({"teacher_module": known.module} if known.module else {}),
        "data_digest": dataset.digest,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "steps": total,
    }
    with contextlib.closing(Record(config.out)) as record, StopRequest() as stop:
        for note in record.open(config.as_dict(), identity, jax.local_devices()[:1]):
            say(f"note: {note}")
        checkpoints = Checkpoints(config.out / "checkpoints", identity, keep=1, config=record.config)
        state = game.init(config.seed)
        before: Any = checkpoints.restore_latest(state)
        state = before or state
        if (done := int(state.step)) == total:
            say(f"{config.out} is done already: {total:,} steps")
            return config.out
        record.rewind(done)
        say(
            f"{config.out}: an image generator, {'x'.join(map(str, dataset.image_shape))}, against "
            f"{known.name}, with {len(ids):,} of {len(split):,} training images; {config.epochs} epochs of "
            f"{per_epoch} steps" + (f"; resuming at step {done:,}" if done else "")
        )
        network, frozen = known.frozen

        @jax.jit
        def step(state: GeneratorState, frozen: Any, images: jax.Array) -> GeneratorState:
            answer = lambda made: network.apply(frozen, as_pixels(made))[0].logits  # noqa: E731
            return game.step(state, images, stream_key(config.seed, f"{_KIND}/steps"), answer)

        def save(state: GeneratorState) -> None:
            record.flush()
            checkpoints.save(state)

        state = jax.device_put(state)
        said = saved = time.monotonic()
        for epoch in range(done // per_epoch + 1, config.epochs + 1):
            places = batches(epoch_order(len(ids), seed=config.seed, epoch=epoch), config.batch_size)
            for place in places[int(state.step) - (epoch - 1) * per_epoch :]:
                state = step(state, frozen, split.images[ids[place[place >= 0]]])
                if stop.signal_name:
                    save(state)
                    raise Stopped(
                        f"stopped by {stop.signal_name} after step {int(state.step)} of {total}; checkpoint "
                        f"saved in {config.out}; the same command resumes from there"
                    )
            losses = {name: float(value) / per_epoch for name, value in jax.device_get(state.sums).items()}
            if not all(map(np.isfinite, losses.values())):
                raise FloatingPointError(
                    f"the losses of epoch {epoch} are not finite: {losses}; lower --learning-rate"
                )
            record.write(_KIND, int(state.step), epoch, **losses)
            state = state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
            if epoch == config.epochs or time.monotonic() - said > 5:
                said = time.monotonic()
                shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
                say(f"epoch {epoch}/{config.epochs}: {shown}")
            if time.monotonic() - saved > 60:
                save(state)
                saved = time.monotonic()
        save(state)
    say(f"{config.out}: done; distil on its images with --method mekd --method.generator {config.out}")
    return config.out


def at_hand(count: int, fraction: float, seed: int) -> np.ndarray:
    """The ids of the training images, of `count`, that a generator is trained on; at least two."""
    return np.sort(epoch_order(count, seed=seed, epoch=0)[: max(round(count * fraction), 2)])


def load_generator(folder: Path) -> Generated:
    """The generator of a finished first stage.

    Raises:
      ValueError: there is none, or it is not finished.
    """
    found, _ = read_newest(folder / "checkpoints")
    about = found.about.identity if found else {}
    if found is None or about.get("stage") != _KIND:
        raise ValueError(f"{folder} holds no generator; `jaxkd generator --out {folder}` trains one")
    if found.step < about["steps"]:
        raise ValueError(
            f"the generator in {folder} has {found.step:,} of {about['steps']:,} steps; repeat the command "
            "that started it"
        )
    height, width, channels = about["image_shape"]
    module = Generator((height, width, channels), about["width"], parent=None)  # called inside a method too
    return Generated(found.about.digest, module, about["num_classes"], found.state["generator"])


def _game(config: GeneratorConfig, dataset: datasets.Dataset) -> Game:
    side = min(dataset.image_shape[:2])
    blocks = config.blocks or max(min(side.bit_length() - 2, 4), 1)
    if side < 2**blocks:
        raise ValueError(f"images of {side} pixels cannot be halved {blocks} times; lower --blocks")
    return Game(
        Generator(dataset.image_shape, config.width),
        Discriminator(blocks),
        dataset.num_classes,
        optax.adam(config.learning_rate, b1=0.5, b2=0.999),
        config.weight,
        config.response,
    )
