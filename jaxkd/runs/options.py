"""Options of runs: their output, their devices and their processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxkd.options import Options, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """Output"""

    run: Path | None = option(default=None, main=True, free=True)
    """Folder of the run, local or gs://BUCKET/FOLDER: records, checkpoints, result and model. Default: under
    runs/, named after data, networks, method and seed."""
    seeds: int = option(default=1, main=True, free=True)
    """Number of runs, with seeds --seed, --seed + 1 and so on, in folders that end in -seed0 and so on, with
    mean and standard deviation at the end."""
    log_every: int = option(default=100, free=True)
    """Steps between lines in metrics.jsonl."""
    checkpoint_seconds: float = option(default=60.0, free=True)
    """Minimum number of seconds between checkpoints; one is always saved at the end."""
    eval_batch_size: int = option(default=256, free=True)
    """Images per evaluation step, over all devices."""
    fork: Path | None = option(default=None, free=True)
    """Folder of another run: start from its newest checkpoint (networks, optimiser and step), with other
    options. Student, data and --batch-size must be the same, and so must be the optimizer, --ema and what
    the method trains."""
    debug: bool = option(default=False, free=True)
    """Check every step; repeat a step that gives NaN or infinity, operation by operation, and show where it
    arises. Slower, with the same numbers."""
    profile: int | None = option(default=None, free=True)
    """Number of steps to trace with JAX's profiler, into the run's folder."""
    wandb: str | None = option(default=None, free=True)
    """Weights & Biases project to log the metrics to; needs wandb."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "seeds", "log_every", "eval_batch_size", "profile")
        self.require(0, "checkpoint_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Devices"""

    devices: int | None = option(default=None, free=True)
    """Number of local devices per process. Default: all."""
    steps_per_call: int | None = option(default=None, free=True)
    """Training steps per call of the compiled program. Default: 1 on CPU, 25 on GPU and TPU."""
    mapping: Literal["pmap", "shard_map"] = option(default="pmap", free=True)
    """How to map a step over the devices: jax.pmap, or its successor, jax.jit of jax.shard_map. The bits are
    the same."""
    stream: bool = option(default=False, free=True)
    """Transfer every batch from the host, for images that do not fit on a device, such as ImageNet's."""
    workers: int = option(default=0, free=True)
    """Processes that read and decode streamed images. Default: threads."""
    distributed: bool = option(default=False, free=True)
    """Join several processes described by the environment (Cloud TPU, SLURM, Open MPI); start the same
    command in all of them."""
    coordinator: str | None = option(default=None, free=True)
    """HOST:PORT of the process with rank 0, if the environment does not describe the processes; needs
    --num-processes and --process-id."""
    num_processes: int | None = option(default=None, free=True)
    """Number of processes."""
    process_id: int | None = option(default=None, free=True)
    """Process rank, from 0. Only rank 0 reads and writes the run's folder."""
    peer_timeout: int = option(default=60, free=True)
    """Heartbeat timeout in seconds: a process exits if it hears nothing from a peer for this long."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "devices", "steps_per_call", "peer_timeout")
        self.require(0, "workers")
        given = {"--coordinator": self.coordinator, "--num-processes": self.num_processes,
                 "--process-id": self.process_id}  # fmt: skip
        if len({value is None for value in given.values()}) > 1:
            absent = ", ".join(name for name, value in given.items() if value is None)
            raise ValueError(
                f"{', '.join(given)} go together, and {absent} is missing; "
                "if the environment provides all three, pass only --distributed"
            )
        if self.num_processes is not None and self.process_id is not None:
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"--process-id must be from 0 to {self.num_processes - 1}, one less than "
                    f"--num-processes, got {self.process_id}"
                )
            if not (self.coordinator or "").rpartition(":")[2].isdigit():
                raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator}")

    @property
    def joint(self) -> bool:
        """Whether the run has several processes."""
        return self.distributed or self.coordinator is not None
