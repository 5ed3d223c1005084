"""How long every network takes to create and to compile.

    python experiments/speed/models.py

Each network in a process of its own, without compilation cache: drawing its initial variables after the
imports, then tracing and compiling its evaluation and one training step (cross-entropy, SGD with momentum) at
batch 64, 32x32 images, 100 classes, float32.  Nothing is trained.  Both the time that passed and the
processor's time are recorded; other work on the machine lengthens the former.  Minutes on two cores; writes
`results/models.json` and `results/models.md`.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax

from jaxkd import _markdown, models

BATCH, IMAGE, CLASSES = 64, (32, 32, 3), 100
OUT = pathlib.Path(__file__).parent / "results"
STEPS = ("create", "compile evaluation", "compile training")


def measure(name: str) -> dict[str, tuple[float, float]]:
    """Seconds by what was done: those that passed, and the processor's."""
    seconds = {}

    def clock(what, function):
        start = time.perf_counter(), time.process_time()
        result = function()
        seconds[what] = (time.perf_counter() - start[0], time.process_time() - start[1])
        return result

    network = models.create(name, CLASSES)
    variables = clock(
        "create",
        lambda: jax.block_until_ready(models.initialize(network, seed=0, image_shape=IMAGE)),
    )
    optimizer = optax.sgd(0.05, momentum=0.9)

    def evaluate(variables, images):
        return network.apply(variables, images).logits

    def train(variables, opt_state, images, labels):
        def loss(params):
            outputs, updates = network.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            ce = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)
            return jnp.mean(ce), updates

        gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
        changes, opt_state = optimizer.update(gradients, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], changes), **updates}, opt_state

    images, labels = jnp.zeros((BATCH, *IMAGE)), jnp.zeros(BATCH, jnp.int32)
    opt_state = optimizer.init(variables["params"])
    clock("compile evaluation", lambda: jax.jit(evaluate).lower(variables, images).compile())
    clock("compile training", lambda: jax.jit(train).lower(variables, opt_state, images, labels).compile())
    return seconds


def main() -> None:
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    seconds = {}
    for name in models.names():
        child = subprocess.run(
            [sys.executable, __file__, name], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds[name] = json.loads(child.stdout)
        print(name, seconds[name], flush=True)
    machine = {
        "jax": jax.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "models.json").write_text(json.dumps({**machine, "seconds": seconds}, indent=1) + "\n")
    rows = [
        [
            name,
            f"{models.describe(name).parameters:,}",
            *(f"{row[step][0]:.1f} ({row[step][1]:.1f})" for step in STEPS),
        ]
        for name, row in seconds.items()
    ]
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    note = "Seconds that passed, and of the processor; with other work on the machine these tell more."
    table = _markdown.table(["model", "parameters", *STEPS], rows, left=1)
    (OUT / "models.md").write_text(f"{facts}; batch {BATCH}.\n{note}\n\n{table}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
