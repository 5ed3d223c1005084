"""Memory and time of the adaptive loss from hidden states, in chunks, against the naive way.

    python experiments/speed/from_hidden.py

4,096 tokens, 32,000 classes, hidden width 512 on both sides, float32; value and gradient of the mean with
respect to the student's hidden states and output matrix.  Temporary memory is XLA's own analysis of the
compiled program.  "naive" computes all logits and hands them to `losses.kd`; "naive, loss in chunks" does so
with `chunk_size=8`, which saves the loss's memory and not that of the logits.  Needs about 8 GB and a minute
on two cores; writes `results/from_hidden.json`.
"""

from __future__ import annotations

import functools
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp

from jaxkd import losses, temperature

TOKENS, CLASSES, WIDTH = 4096, 32_000, 512
CHUNKS = (64, 128, 256)
REPEATS = 3
OUT = pathlib.Path(__file__).parent / "results" / "from_hidden.json"
ADAPTIVE = {"temperature": temperature.max_logit, "standardize": True}


def naive(student_hidden, student_head, teacher_hidden, teacher_head, **options):
    return losses.kd(student_hidden @ student_head, teacher_hidden @ teacher_head, **ADAPTIVE, **options)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((TOKENS, WIDTH), (WIDTH, CLASSES)) * 2
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    arrays[1], arrays[3] = arrays[1] * 0.05, arrays[3] * 0.05
    ways = {"naive": naive, "naive, loss in chunks": functools.partial(naive, chunk_size=8)} | {
        f"chunks of {size}": functools.partial(losses.kd_from_hidden, **ADAPTIVE, chunk_size=size)
        for size in CHUNKS
    }
    programs, rows = {}, {}
    for name, loss in ways.items():
        step = jax.value_and_grad(lambda *a, loss=loss: jnp.mean(loss(*a)), argnums=(0, 1))
        programs[name] = jax.jit(step).lower(*arrays).compile()
        memory = programs[name].memory_analysis().temp_size_in_bytes / 2**20
        rows[name] = {"temporary_MiB": memory, "seconds": []}
    expected = None
    for _ in range(REPEATS):
        for name, program in programs.items():
            start = time.perf_counter()
            result = jax.block_until_ready(program(*arrays))
            rows[name]["seconds"].append(time.perf_counter() - start)
            expected = expected or result
            # Largest deviation of the value and the two gradients, relative to the largest entry.
            rows[name]["deviation"] = [
                float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
                for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
            ]
            del result
    machine = {"machine": platform.machine(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
