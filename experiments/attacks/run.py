"""Reads hostile and mutated weight files, each in a child with limits of memory and time.

    python experiments/attacks/run.py                        # all attacks, 4,000 mutations; minutes
    python experiments/attacks/run.py --published FOLDER     # mutates the published teachers in FOLDER too

The mutations are flipped bits, cuts, splices, extreme numbers and changed pickle instructions, before and
inside the archives' checksums, drawn from a seed.  A child may be refused the file (with a message), or read
it; whatever it reads must be in the file.  Anything else is a fault, and makes the exit code 1: the file is
kept in --out/faults.  Writes attacks.md into --out.  Needs Linux.
"""

from __future__ import annotations

import argparse
import collections
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hostile  # noqa: E402
import numpy as np  # noqa: E402
import safetensors  # noqa: E402


def suffix(attack: str) -> str:
    return next((end for word, end in ENDINGS.items() if word in attack), ".pt")


ENDINGS = {"npz": ".npz", "npy": ".npz", "members": ".npz", "safetensors": ".safetensors"}


def attack_table(names: list[str], folder: Path) -> tuple[list[str], int]:
    """Runs the named attacks; rows of Markdown, and how many did harm."""
    rows = [
        "| attack | what the file does | bytes | outcome | seconds | MB of memory |",
        "|:--|:--|--:|:--|--:|--:|",
    ]
    faults = 0
    for name in names:
        path = hostile.ATTACKS[name](folder / f"{name}{suffix(name)}")
        outcome = hostile.read_in_child(path)
        faults += outcome.is_fault
        what = (hostile.ATTACKS[name].__doc__ or "").rstrip(".")
        rows.append(
            f"| {name} | {what} | {path.stat().st_size:,} | {outcome.kind} | {outcome.seconds:.2f} | "
            f"{outcome.megabytes:.0f} |"
        )
        path.unlink()
    return rows, faults


def mutation_table(tally: dict[tuple[str, str], collections.Counter[str]]) -> tuple[list[str], int]:
    """The outcomes of the mutations by file; rows of Markdown, and how many did harm."""
    kinds = sorted({kind for counts in tally.values() for kind in counts})
    rows = [f"| file | {' | '.join(kinds)} |", "|:--|" + "--:|" * len(kinds)]
    total: collections.Counter[str] = collections.Counter()
    for column in (0, 1):
        for name in sorted({key[column] for key in tally}):
            mine = sum(
                (counts for key, counts in tally.items() if key[column] == name), collections.Counter()
            )
            rows.append(f"| {name} | {' | '.join(str(mine[kind]) for kind in kinds)} |")
            total += mine if column == 0 else collections.Counter()
        if column == 0:
            rows.append(f"| **mutation** | {' | '.join('' for _ in kinds)} |")
    rows.append(f"| **all** | {' | '.join(str(total[kind]) for kind in kinds)} |")
    return rows, sum(count for kind, count in total.items() if kind not in ("refused", "read"))


def main() -> None:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=4000)
    parser.add_argument("--attacks", choices=("all", "none"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", type=Path, help="folder of published weight files to mutate too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    lines: list[str] = []
    faults, begun = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        if options.attacks == "all":
            rows, harm = attack_table(list(hostile.ATTACKS), folder)
            lines, faults = [*rows, ""], harm
        if options.mutations:
            files = hostile.good_files(folder / "good", options.published)
            keep = options.out / "faults"
            tally = hostile.fuzz(files, options.mutations, folder, seed=options.seed, keep=keep)
            rows, harm = mutation_table(tally)
            lines += [*rows, ""]
            faults += harm
    outcome = (
        f"{faults} FAULTS, kept in {options.out / 'faults'}"
        if faults
        else "No crash, no hang, no foreign memory, no other error than a refusal"
    )
    lines.append(
        f"{options.mutations} mutations of seed {options.seed} in {time.monotonic() - begun:.0f} s, each in "
        f"a child with {hostile.MEMORY // hostile.MIB} MB and {hostile.SECONDS} s. {outcome}. "
        f"Python {platform.python_version()}, numpy {np.__version__}, safetensors {safetensors.__version__}; "
        "`experiments/attacks/run.py`."
    )
    text = "\n".join(lines) + "\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attacks.md").write_text(text)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
