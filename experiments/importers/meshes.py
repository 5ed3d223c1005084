"""Every loss on eight devices, in every way of sharding its logits: is it right, and does it stay divided?

    python experiments/importers/meshes.py [a part of a loss's name ...]

One compiled program a loss and a mode (see `tests/meshes.py`): value and gradient against one device; the
arrays that move between devices (not the sums and maxima of one number per example); and by how much a device
has less to do than one device alone, by the operations that XLA counts.  Runs on a CPU with eight simulated
devices, some minutes on two cores; writes `results/meshes.md`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import jax  # noqa: E402
import meshes  # noqa: E402
from loss_table import STRUCTURAL  # noqa: E402

from jaxkd import _markdown  # noqa: E402

SHAPE = (16, 16, 512)
WRONG = 2e-4  # of the largest entry


def measure(mode: str, name: str) -> dict:
    try:
        result = meshes.outcome(mode, [name], SHAPE)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "deviation": result.deviation[name],
        "moved_entries": [size for _, size in result.moved],
        "divided": result.divided,
    }


def cell(row: dict) -> str:
    if "error" in row:
        return "error"
    right = f"{row['divided']:.1f}" if row["deviation"] < WRONG else f"wrong: {row['deviation']:.0e}"
    return right if not row["moved_entries"] else f"{right}, moves {len(row['moved_entries'])}"


def table(rows: dict[str, dict[str, dict]]) -> str:
    modes = list(meshes.MODES)
    cells = [
        [name, *(cell(of_modes[mode]) if mode in of_modes else "-" for mode in modes)]
        for name, of_modes in rows.items()
    ]
    return _markdown.table(["loss", *modes], cells, left=1)


def main() -> None:
    names = [name for name in STRUCTURAL if not sys.argv[1:] or any(part in name for part in sys.argv[1:])]
    rows: dict[str, dict[str, dict]] = {}
    for name in names:
        rows[name] = {
            mode: measure(mode, name)
            for mode in meshes.MODES
            if not (meshes.MODES[mode].axis_name and name in meshes.WITHOUT_AXIS_NAME)
        }
        print(name, {mode: cell(row) for mode, row in rows[name].items()}, flush=True)
    text = f"""# Losses on eight devices

Logits of shape {list(SHAPE)}, value and gradient, jax {jax.__version__}, {jax.default_backend()}. Made by
`experiments/importers/meshes.py`.

A cell is the factor by which a device has less to do than one device alone (8 is the whole division; what is
done per example is done by every device that holds a part of its classes). Every value and gradient is within
{WRONG} of one device's, relative to the largest entry, unless the cell says "wrong". "moves n": the program
moves n arrays that are as large as a device's logits or larger. "-": the loss has no `axis_name`.

{table(rows)}"""
    out = HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "meshes.md").write_text(text)


if __name__ == "__main__":
    main()
