"""The training loop: the only place in training with side effects.

It reads from top to bottom: restore, train an epoch, evaluate, and so on.  Data, views and randomness are
functions of the step, so a state is all that is needed to resume.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxkd import metrics
from jaxkd.cpu import release_memory
from jaxkd.data import Dataset, Split, StreamedSplit, epoch_order
from jaxkd.data.batch import Batch
from jaxkd.data.feed import Feed, open_feed, stack
from jaxkd.data.order import batches
from jaxkd.devices import replicate
from jaxkd.methods import Method, predicts_itself
from jaxkd.models import Network
from jaxkd.progress import ProgressLines, Say
from jaxkd.runs import nonfinite
from jaxkd.runs.checkpoint import Checkpoints, describe_newest
from jaxkd.runs.config import RunConfig
from jaxkd.runs.processes import agreed_signal, from_first, is_first
from jaxkd.runs.record import Record
from jaxkd.runs.watching import Profiler
from jaxkd.signals import Stopped, StopRequest
from jaxkd.storage import write_json
from jaxkd.training import Frozen, Task, TrainState
from jaxkd.training.mapped import Mapping, default_steps_per_call, mapped_eval_step, mapped_train_step

if TYPE_CHECKING:
    from jaxkd.cache.source import CachedLogits


class Stopwatch:
    """Sums the seconds spent under a few names, each since the last `start` or `stop`."""

    def __init__(self) -> None:
        self.seconds = {"compile": 0.0, "teacher": 0.0, "train": 0.0, "evaluate": 0.0}
        self.images = 0
        self.start()

    def start(self) -> None:
        """Discards the time since the last reading: it belongs to no name."""
        self._since = time.perf_counter()

    def stop(self, name: str) -> float:
        """Adds the time since the last reading to a name, and returns it."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[name] += spent
        return spent

    def images_per_second(self) -> float:
        """Speed of training, including a teacher that runs ahead, without compilation and evaluation."""
        seconds = self.seconds["train"] + self.seconds["teacher"]
        return self.images / seconds if self.images else 0.0


class Loop:
    """One run of a task on a dataset.

    Args:
      task: the run's constants.
      dataset: with the splits "train" and "test".
      config: batch sizes, and how often to log, evaluate and save.
      devices: the devices to train on.
      record: the run's files.
      checkpoints: the run's checkpoints.
      rate: the learning rate by step, for the record; None if it is not known.
      stop: the signal handler; entered by the caller.
      cached: the teacher's logits; None to run the teacher in each step.
      say: callback for progress lines.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        *,
        config: RunConfig,
        devices: list[jax.Device],
        record: Record,
        checkpoints: Checkpoints,
        rate: Callable[[int], float] | None,
        stop: StopRequest,
        cached: CachedLogits | None = None,
        say: Say,
    ) -> None:
        self._task = task
        self._train_split = dataset.splits["train"]
        self._config = config
        self._devices = devices
        # A call ends at a log point and at the end of an epoch.
        wanted = config.steps_per_call or min(default_steps_per_call(devices), config.log_every)
        self._steps_per_call = min(wanted, task.steps_per_epoch)
        if config.debug:
            self._steps_per_call = 1
        self._record = record
        self._checkpoints = checkpoints
        self._rate = rate
        self._cached = cached
        self._say = say
        self._lines = ProgressLines(say)
        self._stop = stop
        self._step_function = mapped_train_step(task, devices, config.mapping)
        reading: dict[str, Any] = {"stream": config.stream, "workers": config.workers}
        self._feed = open_feed(self._train_split, devices, seed=task.seed, **reading)
        self._evaluator = Evaluator(
            task.student,
            task.method if predicts_itself(task.method) else None,
            dataset.splits["test"],
            config.eval_batch_size,
            devices,
            config.mapping,
            task.code,
            **reading,
        )
        self._total_steps = task.total_steps
        self._saved_at = time.monotonic()
        self._compiled: set[int] = set()
        profiled = config.profile if is_first() else None
        self._profiler = Profiler(record.local / "profile" if profiled else record.folder, profiled, say)
        self.stopwatch = Stopwatch()

    def run(self, state: TrainState, frozen: Frozen) -> TrainState:
        """Trains from the newest good checkpoint, or from `state`, to the end.

        Raises:
          Stopped: a signal arrived; a checkpoint was saved.
          NonFiniteError: a value was not finite; the last checkpoint is from before that.
        """
        restored = self._checkpoints.restore_latest(state)
        if restored is not None:
            state = restored
            self._say(f"resuming at step {int(state.step)} of {self._total_steps}")
        step = int(state.step)
        self._record.rewind(step)
        self._lines.begin(step, self._total_steps)
        place = lambda tree: replicate(tree, self._devices)  # noqa: E731
        state, frozen = place(state), place(frozen)

        per_epoch = self._task.steps_per_epoch
        evaluated = {line["epoch"] for line in self._record.lines("test")}
        if step and step % per_epoch == 0 and step // per_epoch not in evaluated:
            self._evaluate(state, frozen, step // per_epoch)
        self._stop_if_asked(state)  # before a compilation, which may exceed a signal's grace period
        for epoch in range(step // per_epoch + 1, self._task.num_epochs + 1):
            state = self._train_epoch(state, frozen, epoch)
            self._evaluate(state, frozen, epoch)
            self._stop_if_asked(state)
        self.close()
        self._write(state)
        return jax.device_get(state)

    def close(self) -> None:
        """Ends a trace that is still running."""
        self._profiler.close()

    def _train_epoch(self, state: TrainState, frozen: Frozen, epoch: int) -> TrainState:
        step = int(state.step)
        order = epoch_order(len(self._train_split), seed=self._task.seed, epoch=epoch)
        done = step - (epoch - 1) * self._task.steps_per_epoch
        todo = batches(order, self._config.batch_size)[done:]
        if self._cached is not None and len(todo):
            self.stopwatch.start()
            self._cached.start_epoch(epoch, stop=lambda: self._stop.signal_name is not None)
            self.stopwatch.stop("teacher")
            self._stop_if_asked(state)
        stream = self._feed(todo, epoch)
        for chunk in _chunks(todo, done, self._config.log_every):
            for ids in _pieces(chunk, self._steps_per_call):
                state = self._call(state, frozen, ids, stream)
                if self._stop.signal_name and jax.process_count() == 1:
                    break  # several processes agree on the step first
            self._look(state, epoch)
            self._stop_if_asked(state)
            if time.monotonic() - self._saved_at > self._config.checkpoint_seconds:
                self._save(state)
        return state

    def _call(
        self, state: TrainState, frozen: Frozen, ids: np.ndarray, stream: Iterator[Batch]
    ) -> TrainState:
        """Runs some steps; the first (compiling) call is reported and timed separately."""
        first = len(ids) not in self._compiled
        if first:
            if self._compiled:
                jax.block_until_ready(state)
                self.stopwatch.stop("train")
            self._say(f"compiling the training step ({len(ids)} per call) ...")
            self.stopwatch.start()
        batches = stack(list(itertools.islice(stream, len(ids))))
        if self._cached is not None:
            batches = batches.replace(**self._cached.of_batch(batches.ids))  # type: ignore[attr-defined]
        before = jax.device_get(state) if self._config.debug else None
        if self._feed.resident is None or self._devices[0].platform == "cpu":
            # Or the images of many steps pile up on the device; on a CPU, the activations of many steps.
            jax.block_until_ready(state.step)
        if not first:
            self._profiler.before()
        state = self._step_function(state, frozen, self._feed.resident, batches)
        self._profiler.after(len(ids), state)
        if before is not None:
            share = jax.tree.map(lambda leaf: leaf[:, 0], batches)  # of the one step of this call
            again = self._task, before, frozen, self._feed.resident, share
            self._check(state, lambda: nonfinite.where_it_arises(*again))
        if first:
            self._check(state)
            self._compiled.add(len(ids))
            release_memory()
            seconds = self.stopwatch.stop("compile")
            self._lines.leave_out(seconds, len(ids))
            self._say(f"compiled and ran the first call in {seconds:.1f} s")
        else:
            self.stopwatch.images += int((ids >= 0).sum())
        return state

    def _look(self, state: TrainState, epoch: int) -> None:
        """Waits for the device, checks and records the epoch's averages so far."""
        tally = jax.device_get(state.tally)
        self.stopwatch.stop("train")
        self._check(state)
        step, speed = int(state.step), self.stopwatch.images_per_second()
        rate = {} if self._rate is None else {"learning_rate": self._rate(step - 1)}
        averages = metrics.numbers(tally.all)
        if speed:  # not if only the first call, which compiles, has ended
            rate["images_per_second"] = round(speed, 1)
        self._record.write("train", step, epoch, **averages, **rate)
        self._lines.trained(f"epoch {epoch}/{self._task.num_epochs}", step, tally.all, speed)

    def _check(self, state: TrainState, look_again: Callable[[], list[str]] | None = None) -> None:
        """Raises NonFiniteError if the step was not finite, and records what is needed to repeat it."""
        tally = jax.device_get(state.tally)
        trouble = nonfinite.find(tally)
        if trouble is None:
            return
        saved = self._checkpoints.latest_step()
        where = look_again() if look_again else []
        evidence = nonfinite.evidence(trouble, self._task, tally, self._train_split, self._config.batch_size)
        path = self._record.folder / "nonfinite.json"
        if is_first():
            write_json(path, {**evidence, "checkpoint": saved, "where": where})
        place = "\n".join(where) or "The same command with --debug repeats it and shows where it arises"
        raise nonfinite.NonFiniteError(
            f"step {trouble.step}: {trouble.term}; {describe_newest(saved)}. To fix it, {trouble.remedy}. "
            f"Its batch is in {path}.\n{place}"
        )

    def _evaluate(self, state: TrainState, frozen: Frozen, epoch: int) -> None:
        self.stopwatch.start()
        scores = self._evaluator((state.student, {**state.method_variables, **frozen.collections}))
        self._record.write("test", int(state.step), epoch, **scores)
        self._lines.evaluated(f"epoch {epoch}/{self._task.num_epochs}", scores)
        self.stopwatch.stop("evaluate")

    def _stop_if_asked(self, state: TrainState) -> None:
        # Only the agreed signal counts, or this process would stop alone: a later signal waits for the next
        # check.
        name = agreed_signal(self._stop.signal_name)
        if name is None:
            return
        self._stop.signal_name = name
        step = int(state.step)
        if step == self._total_steps:
            return
        saved = "there was nothing to save, and the same command starts again"
        if step:
            from_first(lambda: self._write(state))  # the others wait: a save may be slow
            saved = f"checkpoint saved in {self._record.folder}; the same command resumes from there"
        raise Stopped(f"stopped by {name} after step {step} of {self._total_steps}; {saved}")

    def _write(self, state: TrainState) -> int:
        self._record.flush()  # resuming from the checkpoint needs the lines before it
        return self._checkpoints.save(state)

    def _save(self, state: TrainState) -> None:
        self._write(state)
        self._saved_at = time.monotonic()
        self.stopwatch.start()


class Evaluator:
    """Accuracy and cross-entropy of a network over exactly all examples of a split."""

    def __init__(
        self,
        network: Network,
        method: Method | None,
        split: Split | StreamedSplit,
        batch_size: int,
        devices: list[jax.Device],
        mapping: Mapping = "pmap",
        code: str = "",
        **reading: Any,
    ) -> None:
        """`method` turns outputs into logits (None: the network's own); `reading` is for `open_feed`.

        `code` is that of a `Task`.
        """
        rounded = -(-batch_size // len(devices)) * len(devices)
        self._ids = batches(np.arange(len(split)), min(rounded, _up(split, devices)))
        self._feed: Feed = open_feed(split, devices, **reading)
        self._devices = devices
        self._function = mapped_eval_step(network, method, tuple(devices), mapping, code)

    def __call__(self, variables: Any) -> dict[str, float]:
        """Returns accuracy and accuracy_top5 in percent, and the mean cross-entropy in nats.

        Args:
          variables: `(the network's, the method's)`.
        """
        variables = replicate(variables, self._devices)
        parts: list[dict[str, jax.Array]] = []
        for batch in self._feed(self._ids):
            # Few calls in flight: each holds its images, and on simulated devices many concurrent collectives
            # can deadlock.
            jax.block_until_ready(parts[-2:-1])
            parts.append(self._function(variables, self._feed.resident, batch))
        # In float64 on the host, once: no round trip for each batch, and exact counts.
        sums = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
        return {
            "accuracy": 100 * sums["correct"] / sums["examples"],
            "accuracy_top5": 100 * sums["correct_top5"] / sums["examples"],
            "ce": sums["ce"] / sums["examples"],
        }


def _chunks(todo: np.ndarray, done: int, log_every: int) -> Iterator[np.ndarray]:
    """Splits the rest of an epoch at multiples of `log_every` steps, counted from the epoch's start."""
    start = 0
    while start < len(todo):
        end = min(start + log_every - (done + start) % log_every, len(todo))
        yield todo[start:end]
        start = end


def _pieces(chunk: np.ndarray, steps_per_call: int) -> Iterator[np.ndarray]:
    """Splits into calls of `steps_per_call` steps, the rest into calls of one: two programs to compile."""
    whole = len(chunk) - len(chunk) % steps_per_call
    for start in range(0, whole, steps_per_call):
        yield chunk[start : start + steps_per_call]
    for start in range(whole, len(chunk)):
        yield chunk[start : start + 1]


def _up(split: Split | StreamedSplit, devices: list[jax.Device]) -> int:
    """The smallest batch that holds the whole split and can be divided equally."""
    return -(-len(split) // len(devices)) * len(devices)
