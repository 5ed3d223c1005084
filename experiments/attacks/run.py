"""Attacks what jaxkd reads: weight files, its own records, the folders that it is given, odd users.

    python experiments/attacks/run.py                        # everything, 4,000 mutations; minutes
    python experiments/attacks/run.py --published FOLDER     # mutates the published teachers in FOLDER too
    python experiments/attacks/run.py --only records places  # a part

Weights: hostile and mutated files, each read in a child with limits of memory and time.  The mutations are
flipped bits, cuts, splices, extreme numbers and changed pickle instructions, before and inside the archives'
checksums, drawn from a seed.  A child may be refused the file (with a message), or read it; whatever it reads
must be in the file.

Records (`records.py`): every bit of every file that decides on something is flipped, and each is cut, deleted
and filled with nonsense.  Other values than those that were written must be told by the file's name.

Places (`places.py`): odd folder names, somebody's things in the way, too few descriptors, no room, unknown
users.  All works, or there is a message, and everything is as it was.

Anything else is a fault, and makes the exit code 1; weight files are kept in --out/faults.  Writes attacks.md
into --out.  Needs Linux.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

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


def record_table(folder: Path) -> tuple[list[str], int]:
    """Damaged records; rows of Markdown, and how many changes were believed or ended in a traceback."""
    import records  # starts JAX, whose threads the children of the others must not inherit

    rows = ["| file | what was done to it | times | outcomes |", "|:--|:--|--:|:--|"]
    faults = 0
    for name, way, outcomes in records.attack(folder):
        seen = collections.Counter(shown(outcome) for outcome in outcomes)
        faults += sum(count for outcome, count in seen.items() if outcome[0].isupper())
        told = "; ".join(f"{count} {outcome}" for outcome, count in seen.most_common())
        rows.append(f"| {name} | {way} | {len(outcomes):,} | {told} |")
    return rows, faults


def place_table(folder: Path) -> tuple[list[str], int]:
    """Odd places and users; rows of Markdown, and how many times there was harm."""
    import places

    rows = ["| what | outcome |", "|:--|:--|"]
    faults = 0
    for attack in (places.names, places.in_the_way, places.limits, places.users):
        for what, outcome in attack(folder):
            faults += outcome[0].isupper()
            rows.append(f"| {shown(what)} | {shown(outcome.replace(str(folder), ''))} |")
    return rows, faults


def shown(text: str) -> str:
    """A text in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")[:200]


def main() -> None:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("weights", "mutations", "records", "places")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--mutations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", type=Path, help="folder of published weight files to mutate too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    lines: list[str] = []
    faults, begun = 0, time.monotonic()

    def add(heading: str, table: tuple[list[str], int]) -> None:
        nonlocal faults
        rows, harm = table
        lines.extend([f"## {heading}", "", *rows, ""])
        faults += harm

    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        folder.chmod(0o755)  # for users of other ids
        if "weights" in options.only:
            add("Hostile weight files", attack_table(list(hostile.ATTACKS), folder))
        if "mutations" in options.only:
            files = hostile.good_files(folder / "good", options.published)
            keep = options.out / "faults"
            tally = hostile.fuzz(files, options.mutations, folder, seed=options.seed, keep=keep)
            add(f"{options.mutations} mutations of weight files (seed {options.seed})", mutation_table(tally))
        if "records" in options.only:
            add("Damaged records", record_table(folder / "records"))
        if "places" in options.only:
            add("Places and users", place_table(folder / "places"))
    outcome = f"{faults} FAULTS" if faults else "No crash, no hang, no foreign memory, no traceback, no harm"
    lines.append(
        f"{', '.join(options.only)} in {time.monotonic() - begun:.0f} s; weight files each in a child with "
        f"{hostile.MEMORY // hostile.MIB} MB and {hostile.SECONDS} s. {outcome}. "
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
