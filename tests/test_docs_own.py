"""The programs of "bring your own" run as they stand, and learn; their runs resume and are told apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flax")

import helpers

import jaxkd
from jaxkd import data, methods, models, teachers
from jaxkd.runs.record import read_metrics
from jaxkd.training import Named

PAGE = Path(__file__).parents[1] / "docs" / "own.md"
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M))


def programs(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)```", SECTIONS[section], re.S | re.M)


def execute(program: str, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    scope = {"__name__": "__main__"} if scope is None else scope
    exec(compile(program, PAGE.name, "exec"), scope)
    return scope


def run(program: str, *names: str) -> list[Any]:
    """Runs a program in a process of its own, with one device, as a reader does; returns some variables."""
    code = f"""
import json
program = {program!r}
scope = {{"__name__": "__main__"}}
exec(compile(program, {PAGE.name!r}, "exec"), scope)
print()
print(json.dumps([scope[name] for name in {names!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=helpers.environment(optimized=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def losses_of(run: str) -> list[float]:
    """The training losses that a run has recorded."""
    return [line["loss"] for line in read_metrics(Path("runs") / run) if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "number", "accuracy"),
    [
        ("A student in Flax Linen", 0, 85),
        ("A student in Flax NNX", 0, 80),
        ("A loss", 0, 40),
        ("A loss", 1, 40),
    ],
)
def test_a_program_learns_all_digits(section: str, number: int, accuracy: float) -> None:
    """At its full length, with all of the data."""
    (result,) = run(programs(section)[number], "result")
    assert result["last_accuracy"] > accuracy
    if result["method"] == "Pooled":
        assert result["metrics"]["agreement"]["mean"] > 0.5


@pytest.mark.usefixtures("few_digits")
def test_a_vision_transformer_is_taught(tmp_path: Path) -> None:
    """For six of the page's forty epochs."""
    program, adapter = programs("A student in Flax Linen")
    classes, _, training = program.partition("epochs, steps = 40, 23")
    result = execute(f"{classes}epochs, steps = 6, 2{training}")["result"]
    losses = losses_of("vit")
    assert losses[-1] < losses[0]
    scope = execute(adapter, execute(classes))
    teacher = teachers.load(tmp_path / "runs" / "vit", network=scope["ViT"](num_classes=10))
    scores = jaxkd.evaluate(teacher, data.load("digits"))
    assert scores["accuracy"] == pytest.approx(result["last_accuracy"])
    with pytest.raises(ValueError, match=r"holds the weights of a user's network, ViT; load it with"):
        teachers.load(tmp_path / "runs" / "vit")
    network = scope["network"]
    outputs, _ = network.apply(network.init(0, (8, 8, 1)), data.load("digits").splits["test"].images[:2])
    assert outputs.features["tokens"].shape == (2, 16, 64)


def test_a_vision_transformer_is_taught_on_cifar(tmp_path: Path, shared_data: Path) -> None:
    """On a part of CIFAR-100, by the real ResNet-56."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    program = programs("A student in Flax Linen")[0].partition("epochs, steps")[0]
    student = execute(program, scope)["ViT"](num_classes=100, patch=4)
    whole = data.load("cifar100", data_dir=shared_data / "tfds", splits=("test",))
    some = whole.splits["test"]  # decoding all training images would take most of the time
    assert isinstance(some, data.Split)
    small = data.from_arrays(
        (some.images[:128], some.labels[:128]),
        (some.images[128:160], some.labels[128:160]),
        num_classes=100,
        mean=whole.mean,
        std=whole.std,
        augmentation=whole.augmentation,
    )
    weights = shared_data / "teachers" / "cifar100_resnet56.pt"
    variables = teachers.import_torch(weights, model="resnet56", num_classes=100)
    normalisation = (0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
    about = teachers.Description("resnet56", 100, (32, 32, 3), *normalisation, "cifar100")
    teacher = teachers.Teacher("resnet56", about, variables, digest="")
    losses: list[float] = []

    def note(values: Any, _: int) -> None:
        losses.extend([values["train/loss"]] if "train/loss" in values else [])

    options: dict[str, Any]
    options = {
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup_epochs": 1,
        "batch_size": 32,
        "log_every": 16,
    }
    options |= {"epochs": 3, "run": tmp_path / "run", "devices": 1, "say": lambda _: None}
    jaxkd.distill(teacher=teacher, student=student, data=small, on_log=note, **options)
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.usefixtures("few_digits")
def test_an_nnx_student_is_taught() -> None:
    execute(programs("A student in Flax NNX")[0])
    losses = losses_of("nnx")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.usefixtures("few_digits")
def test_own_losses_train(tmp_path: Path) -> None:
    function, method = programs("A loss")
    execute(function)
    result = execute(method)["result"]
    for name in ("soft", "pooled"):
        losses = losses_of(name)
        assert losses[-1] < losses[0]
    assert 0.1 < result["metrics"]["agreement"]["mean"] < 1
    assert result["method"] == "Pooled"
    table = jaxkd.report([tmp_path / "runs"], tmp_path / "report")
    assert "| soft   | resnet8 | soft-3 |" in table
    assert "agreement" in table


@pytest.mark.usefixtures("few_digits")
def test_own_optimisers_data_and_callbacks_are_taken() -> None:
    result = execute(programs("An optimiser")[0])["result"]
    assert result["metrics"]["temperature"]["mean"] != pytest.approx(15.62, abs=1e-3)
    own_data, logging = programs("Data and augmentation")[0], programs("Each log point")[0]
    scope = execute(f"{own_data.replace('1400', '96')}\n{logging}")
    assert scope["result"]["data"] == "my-digits"
    history = scope["history"]
    assert [step for step, _ in history] == [2, 2]
    assert history[0][1].keys() >= {"train/loss", "train/accuracy"}
    assert history[1][1].keys() >= {"test/accuracy"}


def test_other_objects_are_refused_and_changed_code_is_told(tmp_path: Path) -> None:
    import flax.linen as nn
    import optax

    class Mine(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):  # type: ignore[no-untyped-def]
            return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))

    dataset = helpers.tiny_dataset()
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "teacher", dataset))
    said: list[str] = []

    def begin(**changes: Any) -> Any:
        given = {"student": Mine(), "method": "kd", "optimizer": optax.adam(1e-3), **changes}
        options = {"run": tmp_path / "run", "epochs": 1, "batch_size": 16, "devices": 1}
        return jaxkd.distill(teacher=teacher, data=dataset, say=said.append, **{**options, **given})

    first = begin()
    assert begin() == first
    for changes, message in (
        ({"student": Mine(width=9)}, r"student\.module .*student\.shapes"),
        ({"student": models.from_linen(Mine(), name="other")}, r"student \(there Mine, here other\)"),
        ({"student": "resnet8"}, r"student \(there Mine, here resnet8\)"),
        ({"method": methods.create("kd", weight=0.5)}, r"method\.weight \(there 0.9, here 0.5\)"),
        ({"optimizer": optax.sgd(0.1)}, r"optimizer\.state"),
        ({"optimizer": Named("adam", optax.adam(1e-3))}, r"optimizer \(there own, here adam\)"),
        ({"optimizer": "adamw"}, r"optimizer \(there own, here adamw\)"),
        ({"augmentation": jaxkd.data.Identity()}, r"augmentation\.main"),
    ):
        with pytest.raises(ValueError, match=f"holds another run; different: .*{message}"):
            begin(**changes)

    for code in ("x.student_logits[:, 0] ** 2", "x.student_logits[:, 1] ** 2"):
        (tmp_path / "loss.py").write_text(f"def loss(x):\n    return {code}\n")
        scope: dict[str, Any] = {}
        exec(compile((tmp_path / "loss.py").read_text(), str(tmp_path / "loss.py"), "exec"), scope)
        import linecache

        linecache.checkcache()
        said.clear()
        begin(method=methods.from_function(scope["loss"], name="mine"), run=tmp_path / "own")
    assert any("the code of your method has changed since this run began" in line for line in said)
    assert any("is done already" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"student": 3}, TypeError, "a student must be the name of a model, a Flax Linen module"),
        ({"student": "resnet9"}, ValueError, 'unknown model "resnet9"'),
        ({"epoch": 3}, TypeError, "unknown options: epoch; accepted: accumulate, "),
        ({"optimizer": "adam"}, ValueError, 'unknown optimizer "adam"; did you mean "adamw"'),
        ({"config": "text"}, TypeError, "the first argument must be a DistillConfig, got str"),
        ({"run": 7}, ValueError, "--run must be a path or nothing, got 7"),
    ],
)
def test_wrong_arguments_have_their_message(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        jaxkd.distill(**{"teacher": "digits-resnet20", "data": "digits", **arguments})


def test_a_student_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    import flax.linen as nn

    class Seven(nn.Module):
        @nn.compact
        def __call__(self, x):  # type: ignore[no-untyped-def]
            return nn.Dense(7)(x.reshape(len(x), -1))

    with pytest.raises(
        ValueError, match=r"student Seven must return logits \[B, 10\] for digits, got \[B, 7\]"
    ):
        jaxkd.distill(teacher="digits-resnet20", student=Seven(), data="digits", run=tmp_path / "run")
    with pytest.raises(TypeError, match="distill needs teacher=: a name, a folder, or a Teacher"):
        jaxkd.distill(student=Seven(), data="digits")
