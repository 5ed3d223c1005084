"""Evaluation with batch norm folded into the convolutions, against the network as it is.

    python experiments/speed/folding.py

Batch 64 of 32x32 images, float32, jitted, compile time left out; the repeats alternate between the two, so
that a change in the machine's load meets both, and medians are reported.  Fresh weights with statistics away
from 0 and 1; the deviation is that of the logits, relative to the largest.  Writes `results/folding.json`.
"""

from __future__ import annotations

import json
import pathlib
import platform
import statistics
import time

import jax
import numpy as np

from jaxkd import models

NETWORKS = ("resnet8", "resnet56", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1")
BATCH, REPEATS = 64, 21
OUT = pathlib.Path(__file__).parent / "results" / "folding.json"


def measure(name: str) -> dict[str, object]:
    network = models.create(name)
    rng = np.random.default_rng(0)
    variables = models.initialize(network, seed=0, image_shape=(32, 32, 3))
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.random(leaf.shape, np.float32), variables["batch_stats"]
    )
    folded, folded_variables = models.fold(network, variables, (32, 32, 3))
    images = jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))
    logits = lambda apply: jax.jit(lambda v, x: apply(v, x).logits)  # noqa: E731
    programs = {
        "as it is": logits(network.apply).lower(variables, images).compile(),
        "folded": logits(folded.apply).lower(folded_variables, images).compile(),
    }
    arguments = {"as it is": variables, "folded": folded_variables}
    results, seconds = {}, {way: [] for way in programs}
    for _ in range(REPEATS):
        for way, program in programs.items():
            start = time.perf_counter()
            results[way] = jax.block_until_ready(program(arguments[way], images))
            seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    plain = np.asarray(results["as it is"])
    return {
        "network": name,
        "batch_norms": len(jax.tree.leaves(variables["batch_stats"])) // 2,
        "folded_batch_norms": len(folded.norms),
        "images_per_second": {way: round(BATCH / median, 1) for way, median in medians.items()},
        "times_as_fast": round(medians["as it is"] / medians["folded"], 3),
        "largest_deviation": float(np.abs(results["folded"] - plain).max() / np.abs(plain).max()),
    }


def main() -> None:
    rows = []
    for name in NETWORKS:
        rows.append(measure(name))
        print(rows[-1], flush=True)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "machine": platform.machine()}
    OUT.write_text(json.dumps({"about": about, "batch": BATCH, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
