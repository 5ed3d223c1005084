"""Students of several seeds in one program, or one after the other?

    python experiments/speed/seeds.py --student resnet8 --seeds 5

Milliseconds a step for each student, batch 64 of 32x32 images, training on labels: one student alone; the
step mapped over the students (`jax.vmap`), whose convolutions become grouped ones; and the steps of all
students written one after the other into one program.  Interleaved rounds, medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxkd import data
from jaxkd.config import TrainConfig
from jaxkd.training import run as runs
from jaxkd.training.step import AXIS, Batch, gather, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (640, 32, 32, 3), np.uint8), rng.integers(0, 100, 640)
    dataset = data.from_arrays((images, labels), (images, labels), num_classes=100, view=data.View(4, True))
    task = runs._task(TrainConfig(epochs=1), args.student, dataset, None, None)
    train = dataset.splits["train"]
    resident = (jax.numpy.asarray(train.images), jax.numpy.asarray(train.labels))

    def one(state: Any, ids: jax.Array, seed: jax.Array) -> Any:
        seeded = dataclasses.replace(task, seed=seed)
        return train_step(seeded, state, None, gather(resident, Batch(ids)))

    def unrolled(states: Any, ids: jax.Array, seeds: jax.Array) -> Any:
        pick = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)  # noqa: E731
        after = [one(pick(states, i), ids[i], seeds[i]) for i in range(args.seeds)]
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *after)

    def over_devices(step: Callable[..., Any]) -> Callable[..., Any]:
        mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,))
        everywhere = PartitionSpec()
        return jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
        )

    state = jax.device_get(runs.initial_state(task, dataset))
    states = jax.tree.map(lambda leaf: np.stack([leaf] * args.seeds), state)
    ids = np.arange(64 * args.seeds, dtype=np.int32).reshape(args.seeds, 64)
    seeds = np.arange(args.seeds, dtype=np.uint32)
    table = {
        "alone": (over_devices(one), (state, ids[0], seeds[0]), 1),
        "vmap": (over_devices(jax.vmap(one)), (states, ids, seeds), args.seeds),
        "unrolled": (over_devices(unrolled), (states, ids, seeds), args.seeds),
    }
    for name, (step, arguments, _) in table.items():
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        print(f"{name}: compiled in {time.perf_counter() - start:.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(args.rounds):
        for name, (step, arguments, students) in table.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            times[name].append(1e3 * (time.perf_counter() - start) / students)
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.0f} ms a step and student")


if __name__ == "__main__":
    main()
