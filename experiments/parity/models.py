"""How far the networks are from torch's, with the same weights and images.

    python experiments/parity/models.py

Compares every network whose outputs were recorded in float64 (`tests/fixtures/README.md` tells how) in
evaluation and in training mode, in float32, with four images.  About a minute on two cores; writes
`results/models.md`.
"""

from __future__ import annotations

import pathlib
import platform
import sys

import jax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import parity  # noqa: E402

from jaxkd import _markdown, models  # noqa: E402

OUT = HERE / "results" / "models.md"


def main() -> None:
    head, rows = [], []
    for name in models.names():
        if name in parity.recorded():
            found = parity.deviations(name)
            head = ["model", "parameters", *found]
            parameters = f"{models.describe(name).parameters:,}"
            rows.append([name, parameters, *(f"{value:.1e}" for value in found.values())])
            print(*rows[-1], flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        f"jax {jax.__version__}, {platform.machine()}, {jax.devices()[0].device_kind}, float32; 100 classes, "
        "four 32x32 images.\nLargest deviation, divided by the largest value.\n\n"
        + _markdown.table(head, rows, left=1)
    )


if __name__ == "__main__":
    main()
