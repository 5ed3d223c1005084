"""Memory and time of the adaptive loss from hidden states, in chunks, against the naive way.

    python experiments/speed/from_hidden.py [--devices]

4,096 tokens, 32,000 classes, hidden width 512 on both sides, float32; value and gradient of the mean with
respect to the student's hidden states and output matrix.  Temporary memory is XLA's own analysis of the
compiled program; seconds are the process's CPU time, which other programs on the machine do not change.
"naive" computes all logits and hands them to `losses.kd`; "naive, loss in chunks" does so with
`chunk_size=8`, which saves the loss's memory and not that of the logits; "with the cross-entropy" has both
losses in one pass.  Needs about 8 GB and a minute on two cores; writes `results/from_hidden.json`.

With `--devices`: 8,192 tokens, 256,000 classes, float32, on eight simulated devices, sharded over 4 x 2
(batch and vocabulary) and over 8 (batch); compiled and not run.  Memory of a device, whose arguments are
mostly the two output matrices; writes `results/from_hidden_devices.json`.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import platform
import sys
import time

if "--devices" in sys.argv:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkd import logits, losses, temperature

TOKENS, CLASSES, WIDTH = 4096, 32_000, 512
CHUNKS = (64, 128, 256)
REPEATS = 3
OUT = pathlib.Path(__file__).parent / "results" / "from_hidden.json"
ADAPTIVE = {"temperature": temperature.max_logit, "standardize": True}


def naive(student_hidden, student_head, teacher_hidden, teacher_head, **options):
    return losses.kd(student_hidden @ student_head, teacher_hidden @ teacher_head, **ADAPTIVE, **options)


def with_cross_entropy(student_hidden, student_head, teacher_hidden, teacher_head, *, chunk_size):
    labels = jnp.zeros(student_hidden.shape[:-1], jnp.int32)

    def loss(heads, student, teacher, labels):
        s, t = (logits.from_hidden(h, w) for h, w in zip((student, teacher), heads, strict=True))
        return losses.kd(s, t, **ADAPTIVE) + losses.cross_entropy(s, labels)

    hidden, heads = (student_hidden, teacher_hidden), (student_head, teacher_head)
    return losses.in_chunks(loss, *hidden, labels, shared=heads, chunk_size=chunk_size)


def on_devices() -> None:
    """Memory of a device, by XLA's analysis: nothing is run."""
    tokens, classes, width = (8, 1024), 256_000, WIDTH
    ways = {"naive": naive} | {
        f"chunks of {size}": functools.partial(losses.kd_from_hidden, **ADAPTIVE, chunk_size=size)
        for size in (128, 512)
    }
    rows: dict[str, dict] = {}
    for layout, shape, of_heads in (("4 x 2", (4, 2), P(None, "vocabulary")), ("8 x 1", (8, 1), P())):
        mesh = jax.make_mesh(shape, ("data", "vocabulary"))

        def like(*shape, spec, mesh=mesh):
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

        arrays = [like(*tokens, width, spec=P("data")), like(width, classes, spec=of_heads)] * 2
        for name, loss in ways.items():
            step = jax.value_and_grad(lambda *a, loss=loss: jnp.mean(loss(*a)), argnums=(0, 1))
            program = jax.jit(step).lower(*arrays).compile()
            memory = program.memory_analysis()
            rows[f"{layout}: {name}"] = {
                "temporary_GiB": memory.temp_size_in_bytes / 2**30,
                "arguments_GiB": memory.argument_size_in_bytes / 2**30,
            }
            print(f"{layout}: {name}", rows[f"{layout}: {name}"], flush=True)
    out = OUT.with_name("from_hidden_devices.json")
    out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1) + "\n")


def main() -> None:
    if "--devices" in sys.argv:
        return on_devices()
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((TOKENS, WIDTH), (WIDTH, CLASSES)) * 2
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    arrays[1], arrays[3] = arrays[1] * 0.05, arrays[3] * 0.05
    ways = {"naive": naive, "naive, loss in chunks": functools.partial(naive, chunk_size=8)} | {
        f"chunks of {size}": functools.partial(losses.kd_from_hidden, **ADAPTIVE, chunk_size=size)
        for size in CHUNKS
    }
    ways["with the cross-entropy, chunks of 256"] = functools.partial(with_cross_entropy, chunk_size=256)
    programs, rows = {}, {}
    for name, loss in ways.items():
        step = jax.value_and_grad(lambda *a, loss=loss: jnp.mean(loss(*a)), argnums=(0, 1))
        programs[name] = jax.jit(step).lower(*arrays).compile()
        memory = programs[name].memory_analysis().temp_size_in_bytes / 2**20
        rows[name] = {"temporary_MiB": memory, "seconds": []}
    expected = None
    for _ in range(REPEATS):
        for name, program in programs.items():
            start = time.process_time()
            result = jax.block_until_ready(program(*arrays))
            rows[name]["seconds"].append(time.process_time() - start)
            if "cross-entropy" in name:
                continue
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
