"""What makes training on a CPU faster: each of the package's choices undone, one at a time.

    python experiments/speed/cpu.py                                    the table
    python experiments/speed/cpu.py --models MobileNetV2 --rounds 1    a quick look at one network

A process for each row, since flags and allocator are chosen when a process begins; the rows take turns for
a few rounds, and medians are reported.  Measured are the gradient step of labels alone and the evaluation, of
64 images of 32x32, in float32, without compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import job

from jaxkd import _markdown

BATCH = 64
SETTINGS = {
    "as it is": (),
    "freed memory is given back": ("allocator",),
    "YNNPACK's convolutions (jaxlib 0.10)": ("flags",),
    "ReLU as a maximum": ("relu",),
    "grouped convolutions left to XLA": ("grouped",),
    "none of these": ("allocator", "flags", "relu", "grouped"),
}


def measure(model: str, undone: list[str], repeats: int) -> dict[str, float]:
    """Milliseconds of a gradient step and of an evaluation, in this process."""
    from jaxkd import cpu

    if "flags" in undone:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} {cpu._YNN_TYPES}=+individual_convolution"
        )
    with mock.patch.object(sys, "platform", "none" if "allocator" in undone else sys.platform):
        cpu.tune_cpu()

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from jaxkd import models
    from jaxkd.models import layers, mobilenet, resnet, shufflenet, vgg, wide_resnet

    if "relu" in undone:
        for module in (mobilenet, resnet, shufflenet, vgg, wide_resnet):
            setattr(module, "relu", nn.relu)  # noqa: B010  (a name that the modules import)
    if "grouped" in undone:
        layers.grouped_convolution = None
    network = models.create(model, 100)
    variables = models.initialize(network, seed=0, image_shape=(32, 32, 3))
    images = jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))

    def loss(params: Any, batch_stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        outputs, updates = network.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, jnp.arange(BATCH))
        return losses.mean(), updates

    def logits(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
        return network.apply({"params": params, "batch_stats": batch_stats}, images).logits

    seen = {}
    for name, function in (("step", jax.grad(loss, has_aux=True)), ("evaluation", logits)):
        arguments = variables["params"], variables["batch_stats"], images
        compiled = jax.jit(function).lower(*arguments).compile()
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            times.append(time.perf_counter() - start)
        seen[name] = 1e3 * statistics.median(times[2:])
    return seen


def table(result: dict[str, Any]) -> str:
    def cell(ms: dict[str, dict[str, float]], setting: str) -> str:
        now, best = ms[setting], ms["as it is"]
        return " / ".join(
            f"{now[part]:.0f} ({now[part] / best[part]:.2f})" for part in ("step", "evaluation")
        )

    rows = [[setting, *(cell(ms, setting) for ms in result["ms"].values())] for setting in SETTINGS]
    return (
        "# Choices for a CPU, undone one at a time\n\n"
        f"Milliseconds of a step / of an evaluation for {BATCH} images, and how many times those of the "
        f"first row; medians of {result['rounds']} processes each. jax {result['jax']}, {result['cores']} "
        "cores. Written by `experiments/speed/cpu.py`, which says what is measured.\n\n"
        + _markdown.table(["", *result["ms"]], rows, left=1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20", "wrn_16_2", "MobileNetV2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=8, help="in each process")
    parser.add_argument("--out", type=Path, default=job.RESULTS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], json.loads(args.measure[1]), args.repeats)))
        return
    seen: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(args.rounds):
        for model in args.models:
            for setting, undone in SETTINGS.items():
                command = [sys.executable, __file__, "--repeats", str(args.repeats)]
                command += ["--measure", model, json.dumps(undone)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                value = json.loads(done.stdout.splitlines()[-1])
                seen.setdefault(model, {}).setdefault(setting, []).append(value)
                print(model, setting, value, file=sys.stderr, flush=True)
    from jax import __version__

    result = {
        "jax": __version__,
        "cores": os.cpu_count(),
        "rounds": args.rounds,
        "ms": {
            model: {
                setting: {part: statistics.median(one[part] for one in values) for part in values[0]}
                for setting, values in by_setting.items()
            }
            for model, by_setting in seen.items()
        },
    }
    job.write(args.out, "cpu", result, table(result))


if __name__ == "__main__":
    main()
