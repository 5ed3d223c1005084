"""Distillation on a CPU, beside a plain PyTorch implementation of the same job.

    python experiments/speed/job.py --torch-python /path/to/python       the table in results/job.md
    python experiments/speed/job.py --students resnet8 --rounds 1        a quick look, without PyTorch
    python experiments/speed/job.py --beside jax-0.12 PYTHON . --out experiments/speed/results/pythons
    python experiments/speed/job.py --beside before python3 /path/to/an/older/checkout --out ...

Processes take turns: this package, PyTorch, and with `--beside` the package of another Python or of another
checkout.  So a change in the machine's load meets all; each measurement is made in several rounds, and
medians are reported.  All use all cores, batch 64, float32, the same networks, augmentation (crop from 4
pixels of padding, flip; whole batches at once), loss (adaptive temperature) and optimiser.  PyTorch runs
eager, in channels-last layout, its teacher in inference mode with batch norm fused into the convolutions;
images lie in memory as uint8 on both sides.  The pixels are random: the time does not depend on them.  What
is measured:

    step      one step of training on labels, of distillation with the teacher, and with its logits at hand
    teacher   its evaluation, batch 64
    job       100 steps as the package makes them, from `jaxkd.distill` (feeding, logging, tally), and as a
              plain PyTorch loop; compilation, evaluation and start-up are listed apart
    memory    with `--memory`, instead: the peak of a process that does nothing but one such job

`limit` is what the machine's best matrix product would allow for the arithmetic that XLA counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
STUDENTS = ("resnet8", "resnet20", "wrn_16_2")
TEACHER = "resnet56"
BATCH = 64
JOB_STEPS = 100
STEPS_PER_EPOCH = 782  # of CIFAR's 50,000 images
KINDS = ("labels", "live", "cached")


def median_ms(call: Callable[[int], Any], *, seconds: float = 0.3, rounds: int = 5) -> float:
    """Milliseconds of a call, which is told how often: the median of rounds that last some time each."""
    call(1)
    start = time.perf_counter()
    call(1)
    count = max(1, min(200, int(seconds / max(time.perf_counter() - start, 1e-6))))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(count)
        times.append((time.perf_counter() - start) / count)
    return 1e3 * statistics.median(times)


def write(out: Path, name: str, result: Any, text: str) -> None:
    """A measurement's files: NAME.json, and NAME.md, which is printed too."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(text)
    print(text)


class Side:
    """What both sides are timed by; they put the calls to time into `_calls`."""

    _calls: dict[tuple[str, str, str], Any]

    def time(self, what: str, name: str, kind: str, count: int) -> float:
        return self.clock(lambda: self._calls[what, name, kind](count))

    def clock(self, call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def memory(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- this package


class Jaxkd(Side):
    """Runs the package's own step and its own command."""

    def __init__(
        self, folder: Path, *, images: int = JOB_STEPS * BATCH, classes: int = 100, teacher: str = TEACHER
    ) -> None:
        start = time.perf_counter()
        import jax
        import numpy as np

        from jaxkd import data, models, teachers, tune_cpu

        tune_cpu()  # as the command line does
        self.facts = {"import_s": time.perf_counter() - start, "jax": jax.__version__}
        self.facts["device"] = jax.devices()[0].device_kind
        self.facts["python"] = platform.python_version()
        self._folder, self._calls = folder, {}
        rng = np.random.default_rng(0)

        def split(count: int) -> tuple[Any, Any]:
            return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count)

        self._dataset = data.from_arrays(
            split(images),
            split(BATCH),
            num_classes=classes,
            augmentation=data.CropFlip(4, True),
            name="random",
        )
        variables = models.initialize(
            models.create(teacher, classes), seed=0, image_shape=self._dataset.image_shape
        )
        about = teachers.Description(
            teacher, classes, (32, 32, 3), self._dataset.mean, self._dataset.std, "random"
        )
        teachers.save(folder / "teacher", variables, about)
        self._teacher = teachers.load(folder / "teacher")

    def has(self, model: str) -> bool:
        from jaxkd import models

        return model in models.names()

    def peak(self) -> float:
        """GFLOP/s of the best of a few matrix products."""
        import jax
        import jax.numpy as jnp

        a = jnp.ones((2048, 2048), jnp.float32)
        product = jax.jit(jnp.dot)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(product(a, a))
            times.append(time.perf_counter() - start)
        return 2 * 2048**3 / min(times) / 1e9

    def flops(self, model: str) -> float:
        """Of one image, forward: those that XLA counts."""
        import jax
        import jax.numpy as jnp

        from jaxkd import models

        network = models.create(model, 100)
        variables = models.initialize(network, seed=0, image_shape=(32, 32, 3))
        lowered = jax.jit(network.apply).lower(variables, jnp.zeros((1, 32, 32, 3)))
        return float(lowered.cost_analysis()["flops"])

    def prepare(self, student: str, kind: str) -> dict[str, float]:
        """Compiles the step; returns its seconds of compilation."""
        steps, seconds = self.steps_of(student, kind)
        self._calls["step", student, kind] = steps
        return {"compile_s": seconds}

    def steps_of(
        self, student: str, kind: str, *, batch: int = BATCH, per_call: int = 1, precision: str = "float32"
    ) -> tuple[Callable[[int], None], float]:
        """A function that makes some calls of several steps each; the seconds of compilation."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxkd import methods, models
        from jaxkd.config import TrainConfig
        from jaxkd.data.batch import Batch
        from jaxkd.devices import replicate, share
        from jaxkd.runs.run import Parts, make_task
        from jaxkd.training import Frozen, initial_state
        from jaxkd.training.mapped import mapped_train_step

        method = methods.create("labels" if kind == "labels" else "atkd")
        network = models.as_network(student, self._dataset.num_classes, dtype=jnp.dtype(precision))
        teacher = self._teacher if method.reads else None
        config = TrainConfig(epochs=1, batch_size=batch, precision=precision)
        task, _ = make_task(config, Parts(network, method, self._dataset, teacher))
        devices = jax.local_devices()
        train = self._dataset.splits["train"]
        variables = self._teacher.frozen[1]
        start_state = initial_state(task, self._dataset.image_shape, teacher=variables)
        state, resident, frozen = replicate(
            (
                jax.device_get(start_state),
                (train.images, train.labels),
                Frozen(variables if kind == "live" else None),
            ),
            devices,
        )
        shape = len(devices), per_call, batch // len(devices), self._dataset.num_classes
        logits = np.zeros(shape, np.float16) if kind == "cached" else None
        calls = max(1, len(train) // (per_call * batch))
        ids = np.arange(calls * per_call * batch, dtype=np.int32) % len(train)
        several = itertools.cycle(
            Batch(share(some, len(devices)), teacher_logits=logits)
            for some in ids.reshape(calls, per_call, batch)
        )
        step = mapped_train_step(task, devices)
        start = time.perf_counter()
        state = jax.block_until_ready(step(state, frozen, resident, next(several)))
        seconds = time.perf_counter() - start
        holder = {"state": state}

        def steps(count: int) -> None:
            for _ in range(count):
                holder["state"] = step(holder["state"], frozen, resident, next(several))
            jax.block_until_ready(holder["state"])

        return steps, seconds

    def prepare_teacher(self) -> None:
        import jax

        images = self._dataset.splits["train"].images[:BATCH]
        jax.block_until_ready(self._teacher.logits(images))

        def batches(count: int) -> None:
            for _ in range(count):
                out = self._teacher.logits(images)
            jax.block_until_ready(out)

        self._calls["teacher", TEACHER, "eval"] = batches

    def prepare_small_parts(self) -> None:
        """The views of a batch with their normalisation, and the loss with its gradient, each on its own."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxkd import data, losses, models, temperature

        images = jnp.asarray(self._dataset.splits["train"].images[:BATCH])
        ids = jnp.arange(BATCH)
        mean, std = self._dataset.mean, self._dataset.std

        @jax.jit
        def views(images: jax.Array, epoch: int) -> jax.Array:
            shown = data.augment(self._dataset.augmentation, images, ids, seed=0, epoch=epoch)
            return models.normalize(shown, mean, std)

        rng = np.random.default_rng(0)
        s, t = (jnp.asarray(rng.standard_normal((BATCH, 100)), jnp.float32) for _ in range(2))

        @jax.jit
        @jax.grad
        def loss(s: jax.Array, t: jax.Array) -> jax.Array:
            ce = -jax.nn.log_softmax(s)[:, 0]
            kd = losses.kd(s, t, temperature=temperature.max_logit, standardize=True)
            return jnp.mean(0.1 * ce + 9 * kd)

        def run_views(count: int) -> None:
            for i in range(count):
                out = views(images, i)
            jax.block_until_ready(out)

        def run_loss(count: int) -> None:
            for _ in range(count):
                out = loss(s, t)
            jax.block_until_ready(out)

        for name, call in (("views", run_views), ("loss", run_loss)):
            call(1)
            self._calls["part", name, ""] = call

    def build_cache(self) -> dict[str, float]:
        """The cache of the job's 6,400 views, through the command."""
        from jaxkd.cache import CacheConfig, build_cache

        config = CacheConfig(
            teacher=str(self._folder / "teacher"), epochs=1, out=self._folder / "cache", batch_size=256
        )
        start = time.perf_counter()
        cache = build_cache(config, self._dataset, say=lambda line: print(line, file=sys.stderr))
        seconds = time.perf_counter() - start
        return {"views": len(cache), "MiB": cache.num_bytes / 2**20, "seconds_with_compilation": seconds}

    def job(self, student: str, kind: str, number: int | str, *, batch: int = BATCH) -> dict[str, float]:
        """100 steps through `jaxkd.distill` or `jaxkd.train`."""
        import jaxkd
        from jaxkd.config import DistillConfig, TrainConfig

        run = self._folder / "runs" / f"{student}-{kind}-{number}"
        common: dict[str, Any] = {"epochs": 1, "batch_size": batch, "run": run}
        start = time.perf_counter()
        if kind == "labels":
            result = jaxkd.train(TrainConfig(model=student, **common), self._dataset, say=lambda _: None)
        else:
            where = str(self._folder / "cache") if kind == "cached" else "off"
            config = DistillConfig(
                teacher=str(self._folder / "teacher"), student=student, cache=where, **common
            )
            result = jaxkd.distill(config, self._dataset, say=lambda _: None)
        return {
            "images_per_second": result["images_per_second"],
            "compile_s": result["seconds"]["compile"],
            "whole_s": time.perf_counter() - start,
        }


# --- PyTorch


class Torch(Side):
    """The same job in plain PyTorch, on PyTorch's default device."""

    def __init__(self, folder: Path) -> None:
        start = time.perf_counter()
        import torch

        self.facts = {"import_s": time.perf_counter() - start, "torch": torch.__version__}
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        self._torch, self._calls = torch, {}
        self._device = torch.get_default_device().type
        count = JOB_STEPS * BATCH
        self._images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        self._labels = torch.randint(0, 100, (count,))
        self._mean = torch.tensor([0.5071, 0.4867, 0.4408])[:, None, None] * 255
        self._std = torch.tensor([0.2675, 0.2565, 0.2761])[:, None, None] * 255
        self._teacher = self._fused(self.network(TEACHER)).requires_grad_(False)
        self._stored = torch.zeros(count, 100, dtype=torch.float16)

    def network(self, name: str) -> Any:
        """RepDistiller's resnetN or wrn_D_W, for 32x32 images and 100 classes."""
        torch: Any = self._torch
        nn: Any = torch.nn
        F = nn.functional

        def conv(i: int, o: int, size: int, stride: int) -> Any:
            return nn.Conv2d(i, o, size, stride, size // 2, bias=False)

        class Basic(nn.Module):
            def __init__(self, i: int, o: int, stride: int) -> None:
                super().__init__()
                self.conv1, self.bn1 = conv(i, o, 3, stride), nn.BatchNorm2d(o)
                self.conv2, self.bn2 = conv(o, o, 3, 1), nn.BatchNorm2d(o)
                same = i == o and stride == 1
                self.short = (
                    nn.Identity() if same else nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))
                )

            def forward(self, x: Any) -> Any:
                y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
                return F.relu(y + self.short(x), inplace=True)

        class Wide(nn.Module):
            def __init__(self, i: int, o: int, stride: int) -> None:
                super().__init__()
                self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o, 3, stride)
                self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, 3, 1)
                self.short = None if i == o and stride == 1 else conv(i, o, 1, stride)

            def forward(self, x: Any) -> Any:
                a = F.relu(self.bn1(x), inplace=self.short is not None)
                y = self.conv2(F.relu(self.bn2(self.conv1(a)), inplace=True))
                return y + (x if self.short is None else self.short(a))

        wide = name.startswith("wrn")
        if wide:
            depth, factor = map(int, name.split("_")[1:])
            blocks, widths, block = (depth - 4) // 6, [16, 16 * factor, 32 * factor, 64 * factor], Wide
        else:
            blocks, widths, block = (int(name.removeprefix("resnet")) - 2) // 6, [16, 16, 32, 64], Basic
        layers = [conv(3, widths[0], 3, 1)]
        layers += [] if wide else [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for stage, (i, o) in enumerate(itertools.pairwise(widths)):
            for b in range(blocks):
                layers.append(block(i if b == 0 else o, o, 2 if stage and b == 0 else 1))
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)] if wide else []
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 100)]
        return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)

    def _fused(self, network: Any) -> Any:
        torch = self._torch
        from torch.nn.utils.fusion import fuse_conv_bn_eval

        network.eval()
        for block in [network, *network.modules()]:
            names = [name for name, _ in block.named_children()]
            for first, second in itertools.pairwise(names):
                a, b = block._modules[first], block._modules[second]
                if isinstance(a, torch.nn.Conv2d) and isinstance(b, torch.nn.BatchNorm2d):
                    block._modules[first] = fuse_conv_bn_eval(a, b)
                    block._modules[second] = torch.nn.Identity()
        return network.to(memory_format=torch.channels_last)

    def peak(self) -> float:
        torch = self._torch
        a, times = torch.ones(2048, 2048), []
        for _ in range(8):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return 2 * 2048**3 / min(times) / 1e9

    def _views(self, ids: Any) -> Any:
        """Crops, flips and normalises a batch at once."""
        torch = self._torch
        n = len(ids)
        padded = torch.nn.functional.pad(self._images[ids], (4, 4, 4, 4))
        y = torch.randint(0, 9, (n,))[:, None] + torch.arange(32)
        x = torch.randint(0, 9, (n,))[:, None] + torch.arange(32)
        x = torch.where(torch.rand(n)[:, None] < 0.5, x, x.flip(1))
        rows = torch.arange(n)[:, None, None, None]
        channels = torch.arange(3)[None, :, None, None]
        crops = padded[rows, channels, y[:, None, :, None], x[:, None, None, :]]
        return crops.float().sub_(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)

    def _kd(self, s: Any, t: Any) -> Any:
        torch = self._torch
        F = torch.nn.functional

        def zscore(x: Any) -> Any:
            return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)

        s, t = zscore(s), zscore(t)
        with torch.no_grad():
            tau = torch.maximum(s.abs(), t.abs()).amax(1, keepdim=True) * 1.3660254
        terms = F.kl_div(
            F.log_softmax(s / tau, 1), F.log_softmax(t / tau, 1), reduction="none", log_target=True
        )
        return (tau[:, 0] ** 2 * terms.sum(1)).mean()

    def step_of(
        self, student: str, kind: str, *, compiled: str | None = None, half: bool = False
    ) -> Callable[[Any], Any]:
        """A function that takes a step with some examples and returns the sum of the losses so far.

        `compiled` is a mode of `torch.compile` for the student with its loss, and for the teacher.
        """
        torch = self._torch
        network = self.network(student).train()
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        total = torch.zeros(())

        def objective(views: Any, labels: Any, known: Any) -> Any:
            logits = network(views).float()
            loss = torch.nn.functional.cross_entropy(logits, labels)
            return loss if known is None else 0.1 * loss + 9 * self._kd(logits, known.float())

        teacher = self._teacher
        if compiled is not None:
            objective, teacher = (
                torch.compile(f, mode=compiled, dynamic=False) for f in (objective, teacher)
            )

        def step(ids: Any) -> Any:
            views, labels, known = self._views(ids), self._labels[ids], None
            with torch.autocast(self._device, torch.bfloat16, enabled=half):
                if kind == "live":  # in float32, as the package's: its precision is the student's
                    with torch.inference_mode(), torch.autocast(self._device, enabled=False):
                        known = teacher(views)
                    known = known.clone()
                elif kind == "cached":
                    known = self._stored[ids]
                loss = objective(views, labels, known)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return total.add_(loss.detach())

        return step

    def prepare(self, student: str, kind: str) -> dict[str, float]:
        torch = self._torch
        step = self.step_of(student, kind)

        def steps(count: int) -> None:
            for _ in range(count):
                total = step(torch.arange(BATCH))
            float(total)

        def job(count: int) -> None:
            for ids in torch.randperm(len(self._labels)).split(BATCH)[:count]:
                total = step(ids)
            float(total)

        start = time.perf_counter()
        steps(1)
        self._calls["step", student, kind], self._calls["job", student, kind] = steps, job
        return {"first_call_s": time.perf_counter() - start}

    def prepare_teacher(self) -> None:
        torch = self._torch
        images = self._views(torch.arange(BATCH))

        def batches(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    self._teacher(images)

        batches(1)
        self._calls["teacher", TEACHER, "eval"] = batches

    def job(self, student: str, kind: str, number: int | str) -> dict[str, float]:
        if ("job", student, kind) not in self._calls:
            self.prepare(student, kind)
        seconds = self.time("job", student, kind, JOB_STEPS)
        return {"images_per_second": JOB_STEPS * BATCH / seconds}


# --- the two processes


def serve(kind: str, folder: Path) -> None:
    """Answers requests, a line of JSON each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes elsewhere
    worker = {"jaxkd": Jaxkd, "torch": Torch}[kind](folder)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        value = getattr(worker, name)
        answers.write(json.dumps(value(*arguments) if callable(value) else value) + "\n")
        answers.flush()


class Worker:
    """A process of one side, which answers calls; `checkout` is the repository whose package it runs."""

    def __init__(
        self, kind: str, python: str, folder: Path, *, checkout: Path = ROOT, compiled: str = "compiled"
    ) -> None:
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": str(folder / "xdg")}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / compiled)
        environment["PYTHONPATH"] = str(checkout)
        self.process = subprocess.Popen(
            [python, checkout / "experiments/speed/job.py", "--serve", kind, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, name: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the process for {name} {arguments} ended")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def interleaved(
    workers: dict[str, Worker], rounds: int, request: tuple, rate: float | None
) -> dict[str, dict]:
    """Asks all workers in turn, in alternating order; median, least and most of what `rate` or they say."""
    seen: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in sorted(workers, reverse=bool(number % 2)):
            time.sleep(0.3)  # threads of the other process that still spin come to rest
            answer = workers[name](*request, *([number] if request[0] == "job" else []))
            seen[name].append(answer["images_per_second"] if rate is None else rate / answer)
    return {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v), "n": len(v)}
        for name, v in seen.items()
    }


def starts_of(args: argparse.Namespace, folder: Path) -> dict[str, Callable[..., Worker]]:
    """What starts a process of each side, by name."""
    starts = {"jaxkd": partial(Worker, "jaxkd", sys.executable, folder / "jaxkd")}
    if args.torch_python:
        starts["torch"] = partial(Worker, "torch", args.torch_python, folder / "torch")
    for name, python, checkout in args.beside:
        own = Path(checkout).resolve()
        starts[name] = partial(Worker, "jaxkd", python, folder / name, checkout=own)
    return starts


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workers = {name: start() for name, start in starts_of(args, folder).items()}
    ours = workers["jaxkd"]
    students = [name for name in args.students if ours("has", name)]
    result: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "batch": BATCH,
        "teacher_model": TEACHER,
        "load_before": os.getloadavg()[0],
        "facts": {name: worker("facts") for name, worker in workers.items()},
        "peak_gflops": {name: max(worker("peak") for _ in range(3)) for name, worker in workers.items()},
    }
    flops = {name: ours("flops", name) for name in (*students, TEACHER)}
    result["mflops_forward"] = {name: value / 1e6 for name, value in flops.items()}
    for worker in workers.values():
        worker("prepare_teacher")
    count = args.steps
    result["teacher"] = interleaved(
        workers, args.rounds, ("time", "teacher", TEACHER, "eval", count), count * BATCH
    )
    ours("prepare_small_parts")
    result["parts_ms"] = {
        name: 1e3 * statistics.median(ours("time", "part", name, "", 20) / 20 for _ in range(args.rounds))
        for name in ("views", "loss")
    }
    caches = {name: worker("build_cache") for name, worker in workers.items() if name != "torch"}
    result["cache"] = caches["jaxkd"]
    peak = 1e9 * max(result["peak_gflops"].values())
    rows = []
    for student in students:
        for kind in KINDS:
            first = {name: worker("prepare", student, kind) for name, worker in workers.items()}
            work = 3 * flops[student] + (flops[TEACHER] if kind == "live" else 0)
            row = {"student": student, "kind": kind, "first": first, "limit": peak / work}
            row["step"] = interleaved(
                workers, args.rounds, ("time", "step", student, kind, count), count * BATCH
            )
            row["job"] = interleaved(workers, args.job_rounds, ("job", student, kind), None)
            rows.append(row)
            print(" | ".join(cells_of(row)), file=sys.stderr, flush=True)
    result |= {"rows": rows, "load_after": os.getloadavg()[0]}
    for worker in workers.values():
        worker.close()
    return result


def measure_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peaks of processes with one job each: of this package, the first compiles and the next need not."""
    starts = starts_of(args, folder)
    worker = starts["jaxkd"]()
    worker("build_cache")
    worker.close()
    sides = {"compiles": "jaxkd", "cached": "jaxkd"}
    if "torch" in starts:
        sides["torch"] = "torch"
    facts: dict[str, str] = {}
    rows = []
    for student, kind in itertools.product(args.students, KINDS):
        peaks = {}
        for name, side in sides.items():
            worker = starts[side](compiled=f"compiled-{student}-{kind}")
            facts |= {word: fact for word, fact in worker("facts").items() if word in VERSIONS}
            worker("job", student, kind, f"memory-{name}")
            peaks[name] = worker("memory")
            worker.close()
        rows.append({"student": student, "kind": kind, "memory_MiB": peaks})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"facts": facts, "rows": rows}


# --- table and figure

WORDS = {"labels": "labels only", "live": "KD, teacher runs along", "cached": "KD, logits at hand"}


VERSIONS = {"python": "Python", "jax": "jax", "torch": "PyTorch"}


def versions(facts: dict[str, Any]) -> str:
    """Those that a side told."""
    return ", ".join(f"{word} {facts[key]}" for key, word in VERSIONS.items() if key in facts)


def markdown(head: list[str], rows: list[list[str]], *, left: int) -> str:
    from jaxkd import _markdown  # PyTorch's Python, which serves from this file, does not have it

    return _markdown.table(head, rows, left=left)


def cells_of(row: dict[str, Any]) -> list[str]:
    step, job = row["step"], row["job"]
    cells = [row["student"], WORDS[row["kind"]]]
    for part in (step, job):
        ours, other = part["jaxkd"]["median"], part.get("torch", {}).get("median")
        cells += [f"{ours:.0f}", f"{other:.0f}" if other else "", f"{ours / other:.2f}" if other else ""]
    shares = {name: f"{100 * part['median'] / row['limit']:.0f} %" for name, part in step.items()}
    cells += [f"{row['limit']:.0f}", shares["jaxkd"], shares.get("torch", "")]
    return [*cells, f"{STEPS_PER_EPOCH * BATCH / job['jaxkd']['median'] / 60:.1f}"]


def table(result: dict[str, Any]) -> str:
    facts = result["facts"]
    known = versions({"python": result["python"], **facts["jaxkd"], **facts.get("torch", {})})
    head = ["student", "what", "step: jaxkd", "PyTorch", "ratio", "100 steps: jaxkd", "PyTorch", "ratio"]
    head += ["limit", "of it: jaxkd", "PyTorch", "epoch, min"]
    lines = [
        "# Speed of distillation on a CPU",
        "",
        f"Images/s, medians. {result['machine']}, {result['cores']} cores, {known}; "
        f"batch {result['batch']}, teacher {result['teacher_model']}, float32. Load average "
        f"{result['load_before']:.1f} before and {result['load_after']:.1f} after (the benchmark alone makes "
        f"about {result['cores']}). Written by `experiments/speed/job.py`, which says what is measured.",
        "",
        markdown(head, [cells_of(row) for row in result["rows"]], left=2),
    ]
    jobs = {(row["student"], row["kind"]): row["job"] for row in result["rows"]}
    beside = [name for name in facts if name not in ("jaxkd", "torch")]
    if "torch" in facts:
        lines += ["The whole job against PyTorch with its teacher in the loop, by student:", ""]
        rows, sides, kinds = [], ["jaxkd", *beside], {"live": "without", "cached": "with"}
        for student in dict.fromkeys(row["student"] for row in result["rows"]):
            base = jobs[student, "live"]["torch"]["median"]
            ratios = [jobs[student, kind][side]["median"] / base for side in sides for kind in kinds]
            rows.append([student, *(f"{ratio:.2f}" for ratio in ratios)])
        head = [f"{side} {kinds[kind]} cache" for side in sides for kind in kinds]
        lines.append(markdown(["student", *head], rows, left=1))
    if beside:
        lines += beside_table(result["rows"], facts, beside)
    for name in result["teacher"]:
        lines.append(f"- teacher's evaluation, {name}: {result['teacher'][name]['median']:.0f} images/s")
    parts = result["parts_ms"]
    slowest, fastest = (
        f(BATCH * 1e3 / row["step"]["jaxkd"]["median"] for row in result["rows"] if row["kind"] != "labels")
        for f in (max, min)
    )
    small = sum(parts.values())
    cache = result["cache"]
    peaks = [f"{name} {value:.0f} GFLOP/s" for name, value in result["peak_gflops"].items()]
    lines += [
        f"- views with normalisation {parts['views']:.2f} ms, loss with gradient {parts['loss']:.2f} ms for "
        f"a batch: {100 * small / slowest:.1f} to {100 * small / fastest:.1f} % of a step of distillation",
        f"- best matrix product: {', '.join(peaks)}",
        f"- cache of {cache['views']:,} views: {cache['MiB']:.1f} MiB, "
        f"{cache['seconds_with_compilation']:.1f} s with compilation "
        f"({cache['views'] / cache['seconds_with_compilation']:.0f} views/s)",
        "- compilation and first call of a step: "
        + ", ".join(
            f"{r['student']} {r['kind']} {r['first']['jaxkd']['compile_s']:.1f} s" for r in result["rows"]
        ),
        "- import: " + ", ".join(f"{name} {fact['import_s']:.1f} s" for name, fact in facts.items()),
    ]
    return "\n".join(lines) + "\n"


def memory_table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        peaks = row["memory_MiB"]
        other = peaks.get("torch")
        cells = [row["student"], WORDS[row["kind"]]]
        for value in (peaks["compiles"], peaks["cached"]):
            cells += [f"{value:.0f}", f"{value / other:.2f}" if other else ""]
        rows.append([*cells, f"{other:.0f}" if other else ""])
    head = ["student", "what", "jaxkd, which compiles", "ratio", "programs cached", "ratio", "PyTorch"]
    return (
        "# Peak memory of distillation on a CPU\n\n"
        f"MiB, of a process with one job of {JOB_STEPS} steps; {versions(result['facts'])}. Written by "
        f"`experiments/speed/job.py --memory`.\n\n{markdown(head, rows, left=2)}"
    )


def beside_table(rows: list[dict[str, Any]], facts: dict[str, Any], names: list[str]) -> list[str]:
    """Images/s of all versions of this package, and the ratio to this one."""
    titles = {name: f"{name} ({versions(facts[name])})" for name in ("jaxkd", *names)}
    lines = ["The package beside others, images/s:", ""]
    for part, word in (("step", "bare steps"), ("job", "100 steps")):
        cells = []
        for row in rows:
            ours = row[part]["jaxkd"]["median"]
            others = [row[part][name]["median"] for name in names]
            compared = [cell for other in others for cell in (f"{other:.0f}", f"{other / ours:.2f}")]
            cells.append([row["student"], WORDS[row["kind"]], f"{ours:.0f}", *compared])
        head = [cell for name in names for cell in (titles[name], "ratio")]
        lines.append(markdown(["student", word, titles["jaxkd"], *head], cells, left=2))
    return lines


def figure(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = picture.subplots()
    rows = [row for row in result["rows"] if row["kind"] != "labels"]
    names = list(dict.fromkeys(row["student"] for row in rows))
    bars = [
        ("torch", "live", "PyTorch, teacher runs along", "#999999"),
        ("torch", "cached", "PyTorch, logits at hand", "#CCCCCC"),
        ("jaxkd", "live", "jaxkd, teacher runs along", "#56B4E9"),
        ("jaxkd", "cached", "jaxkd, cache", "#0072B2"),
    ]
    jobs = {(row["student"], row["kind"]): row["job"] for row in rows}
    bars = [bar for bar in bars if bar[0] in result["facts"]]
    for place, (worker, kind, label, colour) in enumerate(bars):
        where = [index + 0.2 * (place - (len(bars) - 1) / 2) for index in range(len(names))]
        values = [jobs[name, kind][worker]["median"] for name in names]
        drawn = axes.bar(where, values, 0.19, color=colour, label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=7)
    axes.set(
        xticks=range(len(names)),
        xticklabels=names,
        ylabel="images/s",
        title="100 steps of distillation on a CPU",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch-python", help="interpreter of an environment with PyTorch; without: no comparison"
    )
    parser.add_argument(
        "--beside",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "PYTHON", "CHECKOUT"),
        help="another Python, or another checkout of this repository, in the same rounds; may be repeated",
    )
    parser.add_argument("--memory", action="store_true", help="measure only the peak memory of each job")
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job-rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="in each round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Path(args.serve[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            result = measure_memory(args, Path(folder))
            write(args.out, "job_memory", result, memory_table(result))
            return
        result = measure(args, Path(folder))
    write(args.out, "job", result, table(result))
    if not args.beside:
        figure(result, args.out / "job.png")


if __name__ == "__main__":
    main()
