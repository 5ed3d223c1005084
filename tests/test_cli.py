"""The command line: whole jobs, signals, and every message for bad input.

What signals, kills, limits or a process's own devices have a part in runs in child processes, and so does a
whole job of each main command here or in `test_exchange.py`; the rest runs in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import jax
import numpy as np
import pytest
from helpers import call_jaxkd, run_jaxkd, start_jaxkd

import jaxkd
from jaxkd import cli, data, storage, teachers
from jaxkd.cli.commands import COMMANDS as COMMANDS_BY_NAME
from jaxkd.cli.parse import parse
from jaxkd.config import TrainConfig
from jaxkd.runs.record import Record, read_metrics

COMMANDS = "train", "distill", "cache", "evaluate", "import", "report", "methods"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, dataset: data.Dataset) -> Path:
    return helpers.write_npz(tmp_path_factory.mktemp("data") / "tiny.npz", dataset)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return helpers.untrained_teacher(tmp_path_factory.mktemp("teacher") / "untrained", data.load(str(tiny)))


def test_compiled_programs_are_kept_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/chosen")
        cli.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == before[0]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        cli.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jaxkd" / "compiled")
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run_jaxkd("--help")
    assert code == 0
    assert all(f"• {command} " in output for command in COMMANDS)
    with pytest.raises(SystemExit):
        cli.main(["distill", "--method", "dkd", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    order = ["--teacher TEXT", "--student TEXT", "--method TEXT", "--data TEXT", "--epochs INT", "--run PATH"]
    order += ["method options", "--method.beta FLOAT", "--data-dir PATH", "--batch-size INT", "--log-every"]
    places = [words.replace("TEXT", "STR").find(option.replace("TEXT", "STR")) for option in order]
    assert sorted(places) == places
    assert places[0] > 0


def test_version_and_methods_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"jaxkd {jaxkd.__version__}\n")
    cli.main(["methods", "atkd"])
    assert "| --method.temperature   | max_logit |" in capsys.readouterr().out


@pytest.mark.slow  # the README's main command, shorter
@pytest.mark.usefixtures("few_digits")
def test_a_recipe_trains_its_networks_and_reports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[1] / "experiments" / "recipes" / "digits.py"
    monkeypatch.setattr(sys, "argv", [str(recipe), "--small", "--out", str(tmp_path / "all")])
    for again in (False, True):
        runpy.run_path(str(recipe), run_name="__main__")
        output = capsys.readouterr().out
        assert output.count("is done already") == 4 * again
    resumed = parsed("distill", "--config", tmp_path / "all" / "kd" / "config.json")
    assert (resumed.method, resumed.epochs, resumed.seed) == ("kd", 2, 0)
    report = (tmp_path / "all" / "report" / "report.md").read_text()
    lines = report[report.index("| run ") :].splitlines()
    rows = [line.split("|")[1:4] for line in lines if line.startswith("| ")][2:]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["digits-resnet20", "resnet20", "pretrained"],
        ["alone", "resnet8", "labels"],
        ["kd", "resnet8", "kd"],
        ["lskd", "resnet8", "lskd"],
        ["atkd", "resnet8", "atkd"],
    ]
    assert report.splitlines()[0] in output
    for figure in ("accuracy.png", "temperature.png"):
        assert (tmp_path / "all" / "report" / figure).read_bytes().startswith(b"\x89PNG")


# Some runs below begin in a child and end here, with the same bits.  Both have as many devices, of which they
# use one: XLA has as many threads, and cuts its sums after them.
HERE = 8


def distill_arguments(tiny: Path, teacher: Path, folder: Path) -> list[object]:
    options = ["--data", tiny, "--teacher", teacher, "--batch-size", 8, "--log-every", 1, "--epochs", 2]
    return ["distill", *options, "--checkpoint-seconds", 0, "--run", folder, "--devices", 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path, teacher: Path) -> Path:
    """The folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = run_jaxkd(*distill_arguments(tiny, teacher, folder), devices=HERE)
    assert code == 0, errors
    return folder


# Moments: is the run there now?


def in_steps(folder: Path, _: subprocess.Popen[str] | None = None) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and metrics.read_text().count("\n") >= 3


def in_save(folder: Path, _: subprocess.Popen[str]) -> bool:
    return in_steps(folder) and any((folder / "checkpoints").glob(f".*{storage.UNFINISHED}*"))


def in_evaluation(folder: Path, _: subprocess.Popen[str]) -> bool:
    """The first one: after the line on the epoch's last step and its checkpoint, before that on the test."""
    lines = read_metrics(folder)
    return len(lines) == 5 and lines[-1]["kind"] == "train" and (folder / "checkpoints" / "5").is_dir()


def in_compilation(_: Path, child: subprocess.Popen[str]) -> bool:
    assert child.stdout is not None
    return "compiling" in child.stdout.readline()


Moment = Callable[[Path, subprocess.Popen[str]], bool]


def wait(there: Moment, folder: Path, child: subprocess.Popen[str]) -> None:
    while child.poll() is None and not there(folder, child):
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("SIGINT", in_steps),
        pytest.param("SIGKILL", in_steps, marks=pytest.mark.slow),  # in a save is the harder moment
        ("SIGTERM", in_compilation),
        pytest.param("SIGTERM", in_evaluation, marks=pytest.mark.slow),  # seen at once after the next step
        ("SIGTERM", in_save),
        ("SIGKILL", in_save),
    ],
)
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    tmp_path: Path, tiny: Path, teacher: Path, whole: Path, name: str, there: Moment
) -> None:
    arguments = distill_arguments(tiny, teacher, tmp_path / "cut")
    with start_jaxkd(*arguments, devices=HERE) as child:
        wait(there, tmp_path / "cut", child)
        child.send_signal(signal.Signals[name])
        output, errors = child.communicate(timeout=120)
    assert not (tmp_path / "cut" / "result.json").exists()
    if name == "SIGKILL":
        assert child.returncode == -signal.SIGKILL
    else:
        assert child.returncode == 75, errors
        assert f"stopped by {name} after step" in output
        assert "the same command resumes from there" in output
    code, output, errors = call_jaxkd(*arguments)
    assert code == 0, errors
    assert "resuming at step" in output
    assert teachers.load(tmp_path / "cut").digest == teachers.load(whole).digest
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, tmp_path / "cut")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {"9", "10"}
    assert [path.name for path in (tmp_path / "cut").glob(".*")] == [".lock"]


@pytest.mark.parametrize(("before", "after"), [(8, 1), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_devices(
    tmp_path: Path, tiny: Path, teacher: Path, whole: Path, before: int, after: int
) -> None:
    arguments = distill_arguments(tiny, teacher, tmp_path / "moved")[:-1]
    with start_jaxkd(*arguments, before, devices=before) as child:
        wait(in_steps, tmp_path / "moved", child)
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=120)
    assert child.returncode == 75
    code, output, errors = call_jaxkd(*arguments, after)
    assert code == 0, errors
    assert "resuming at step" in output
    # The same images and views in the same order: on one device or eight, the first losses are equal.
    losses = [
        [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]
        for folder in (whole, tmp_path / "moved")
    ]
    assert len(losses[0]) == len(losses[1]) == 10
    assert losses[1][:5] == pytest.approx(losses[0][:5], rel=1e-3)


def test_another_loss_teacher_or_seed_is_refused_by_name(
    tmp_path: Path, tiny: Path, teacher: Path, whole: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    other = helpers.untrained_teacher(tmp_path / "other", data.load(str(tiny)), model="resnet14")
    for chosen, changes, keys in (
        (
            teacher,
            ["--method", "kd", "--seed", 1],
            ("method (there atkd, here kd)", "seed (there 0, here 1)"),
        ),
        (other, [], ("teacher_digest",)),
    ):
        code, _, errors = call_jaxkd(*distill_arguments(tiny, chosen, folder), *changes)
        assert code == 1
        assert f"{folder} holds another run; different: " in errors
        assert all(key in errors for key in keys)


# The command line, with a place that says when it is reached, and takes its time.
PAUSING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
def pause(*_, **__):
    print("here", flush=True)
    time.sleep(60)
{place}
from jaxkd.__main__ import main
main()
"""
WHILE_IMPORTING = """
class Finder:
    find_spec = lambda name, *_: pause() if name == "optax" else None
sys.meta_path.insert(0, Finder)
"""
WHILE_LOADING = "import jaxkd.data.options as o; o.DataOptions.load = pause"


@pytest.mark.parametrize(
    ("place", "name", "code", "message"),
    [
        (WHILE_IMPORTING, "SIGTERM", 75, "stopped by SIGTERM; there was nothing to save"),
        (WHILE_LOADING, "SIGTERM", 75, "stopped by SIGTERM; there was nothing to save"),
        (WHILE_LOADING, "SIGINT", 130, "stopped at once; earlier checkpoints are intact"),
    ],
)
def test_a_signal_before_training_has_its_message_and_code(
    tmp_path: Path, tiny: Path, teacher: Path, place: str, name: str, code: int, message: str
) -> None:
    arguments = map(str, distill_arguments(tiny, teacher, tmp_path / "run"))
    with subprocess.Popen(
        [sys.executable, "-c", PAUSING.format(place=place), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.Signals[name])
        output, errors = child.communicate(timeout=300)
    assert (child.returncode, errors) == (code, "")
    assert message in output
    assert not (tmp_path / "run").exists()


def parsed(*arguments: object) -> Any:
    commands = {name: kind for name, (kind, _) in COMMANDS_BY_NAME.items()}
    return parse(commands, [str(argument) for argument in arguments], "")[1]


def test_a_config_file_resumes_the_run_that_lies_beside_it(tmp_path: Path, whole: Path) -> None:
    file = whole / "config.json"
    stored = json.loads(file.read_text())["config"]
    assert parsed("distill", "--config", file).as_dict() == stored
    changed = parsed("distill", "--epochs", 3, f"--config={file}", "--flip", True, "--run", "/other")
    assert changed.as_dict() == {**stored, "epochs": 3, "flip": True, "run": "/other"}
    chosen = parsed("distill", "--config", file, "--method", "dkd", "--method.beta=2")
    assert chosen.method_options == {"beta": 2.0}
    contents = json.loads(file.read_text())
    contents["config"] |= {"method": "kd", "method_options": {"weight": 5.0}}
    other = tmp_path / "kd.json"
    other.write_text(json.dumps(contents))
    assert parsed("distill", "--config", other).method_options == {"weight": 5.0}
    assert parsed("distill", "--config", other, "--method", "dkd").method_options == {}
    # From another folder, by a relative path, after the folder of runs was moved.
    moved = shutil.copytree(whole, tmp_path / "moved" / "run")
    code, output, errors = call_jaxkd(
        "distill",
        "--config",
        Path("..") / "moved" / "run" / "config.json",
        folder=make(tmp_path / "elsewhere"),
    )
    assert code == 0, errors
    assert f"{moved} is done already" in output
    assert list((tmp_path / "elsewhere").iterdir()) == []


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_config_file_of_something_else_is_refused(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.json").write_text("[]")
    contents = json.loads((whole / "config.json").read_text())
    contents["config"]["batch_norm"] = "Global"
    (tmp_path / "typed.json").write_text(json.dumps(contents))
    contents["config"]["batch_norm"] = "global"
    (tmp_path / "own.json").write_text(json.dumps({**contents, "objects": ["student"]}))
    for arguments, message in (
        (
            ["train", "--config", whole / "config.json"],
            "has options that TrainConfig does not have: cache, method",
        ),
        (["distill", "--config", tmp_path / "foreign.json"], "is not a valid config.json of a run"),
        (["distill", "--config", tmp_path / "none.json"], "none.json does not exist"),
        (["distill", "--config", tmp_path / "typed.json"], "--batch-norm must be global or device, got 'Glo"),
        (["distill", "--config", tmp_path / "own.json"], "is of a run with user objects (student)"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, tiny: Path, teacher: Path, whole: Path) -> None:
    """From some moment on no file may grow beyond 200 kB, and a state has 300 kB."""
    arguments = distill_arguments(tiny, teacher, tmp_path / "run")
    with start_jaxkd(*arguments, devices=HERE) as child:
        wait(in_steps, tmp_path / "run", child)
        _, most = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (200_000, most))
        _, errors = child.communicate(timeout=300)
    assert child.returncode == 1
    failed = re.search(r"checkpoint .*/(\d+) could not be saved: ", errors)
    saved = re.search(r"the last good checkpoint is step (\d+)\. When that is fixed", errors)
    assert failed is not None, errors
    assert saved is not None, errors
    assert int(failed[1]) == int(saved[1]) + 1
    code, output, errors = call_jaxkd(*arguments)
    assert code == 0, errors
    assert f"resuming at step {saved[1]} of 10" in output
    assert teachers.load(tmp_path / "run").digest == teachers.load(whole).digest


def test_a_damaged_result_is_made_again(tmp_path: Path, tiny: Path, teacher: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text('{"last_acc')
    code, output, errors = call_jaxkd(*distill_arguments(tiny, teacher, tmp_path / "run"))
    assert code == 0, errors
    assert "result.json is damaged: it is not JSON" in errors
    assert "resuming at step 10 of 10" in output
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, tmp_path / "run")]
    for result in results:
        del result["images_per_second"], result["seconds"]
    assert results[0] == results[1]
    # Of a damaged config.json, the same command and --config both know what it said.
    good = (whole / "config.json").read_bytes()
    (tmp_path / "run" / "config.json").write_text("")
    code, output, errors = call_jaxkd("distill", "--config", tmp_path / "run" / "config.json")
    assert code == 0, errors
    assert "config.json is damaged: it is not JSON" in errors
    assert "resuming with the options in checkpoint 10" in errors
    assert "it was rebuilt from checkpoint 10 and kept as damaged-" in output
    assert "is done already" in output
    assert (tmp_path / "run" / "config.json").read_bytes() == good


@pytest.mark.parametrize("joint", [False, True])
def test_an_error_of_no_known_kind_does_not_wait_for_other_processes(
    monkeypatch: pytest.MonkeyPatch, joint: bool
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: fails(None))
    monkeypatch.setattr(cli, "is_joint", lambda: joint)
    left: list[int] = []
    monkeypatch.setattr(cli, "leave", lambda code, **_: left.append(code))

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "keep_compiled_programs", interrupted)
        cli.run(lambda: None)
    assert left.pop() == 130
    with contextlib.nullcontext() if joint else pytest.raises(RuntimeError, match="no memory"):
        cli.run(lambda: None)
    assert left == ([1] if joint else [])


def test_notes_of_an_error_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        error = ValueError("no such image")
        error.add_note("in the run of seed 5")
        raise error

    monkeypatch.setattr(cli, "leave", lambda code: None)
    cli.run(fails)
    assert capsys.readouterr().err.startswith("jaxkd: no such image\nin the run of seed 5\n(JAXKD_TRACEBACK")


def test_a_signal_to_the_workers_too_is_one_to_the_run(tmp_path: Path, tiny: Path, teacher: Path) -> None:
    """As `timeout`, SLURM and systemd send it."""
    arguments = [*distill_arguments(tiny, teacher, tmp_path / "run"), "--stream", "--workers", 2]
    with start_jaxkd(*arguments, own_group=True) as child:
        wait(in_steps, tmp_path / "run", child)
        os.killpg(child.pid, signal.SIGTERM)
        output, errors = child.communicate(timeout=300)
    assert child.returncode == 75, output + errors
    assert "checkpoint saved" in output


def test_two_processes_do_not_work_on_one_run(tmp_path: Path, tiny: Path, teacher: Path) -> None:
    arguments = distill_arguments(tiny, teacher, tmp_path / "run")
    with start_jaxkd(*arguments) as child:
        wait(in_compilation, tmp_path / "run", child)
        child.send_signal(signal.SIGSTOP)  # lest it be done before the other one has begun
        code, _, errors = call_jaxkd(*arguments)
        child.kill()
        child.communicate()
    assert code == 1
    assert f"another process is working on {tmp_path / 'run'}" in errors


def test_evaluate_and_report_on_a_run(tmp_path: Path, tiny: Path, teacher: Path) -> None:
    code, output, errors = call_jaxkd("evaluate", teacher, "--data", tiny)
    assert code == 0, errors
    assert "untrained on all 19 test images: accuracy" in output
    code, output, errors = call_jaxkd(
        "distill", "--data", tiny, "--teacher", teacher, "--epochs", 1, "--method", "lskd",
        "--method.temperature", 3, "--run", tmp_path / "run", "--devices", 1,
    )  # fmt: skip
    assert code == 0, errors
    code, output, errors = call_jaxkd("report", tmp_path / "run", "--out", tmp_path / "report")
    assert code == 0, errors
    assert "| run | resnet8 | lskd   |      1 |" in output
    assert "|        3.00 |" in output


def test_evaluate_finds_the_data_of_a_run_from_any_folder(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was told of them by a relative path; its network knows the file's name alone."""
    monkeypatch.chdir(tiny.parent)
    record = Record(tmp_path / "run")
    record.open(TrainConfig(data=tiny.name).as_dict(), {}, jax.devices()[:1])
    record.close()
    helpers.untrained_teacher(tmp_path / "run" / "model", data.load(tiny.name))
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", "run", "--devices", "1"])
    assert "run on all 19 test images: accuracy" in capsys.readouterr().out


def test_evaluate_reads_the_folder_that_the_run_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, asked = helpers.tiny_dataset(), []

    def load(name: str, *, data_dir: Path | str | None, **_: Any) -> data.Dataset:
        asked.append((name, str(data_dir)))
        return dataset

    record = Record(tmp_path / "run")
    record.open(TrainConfig(data="cifar100", data_dir=tmp_path / "mine").as_dict(), {}, jax.devices()[:1])
    record.close()
    helpers.untrained_teacher(tmp_path / "run" / "model", dataset)
    monkeypatch.setattr(data, "load", load)
    for more in ([], ["--data-dir", "other"], ["--data", "cifar10"]):
        cli.main(["evaluate", str(tmp_path / "run"), "--devices", "1", *more])
    assert asked == [("cifar100", str(tmp_path / "mine")), ("cifar100", "other"), ("cifar10", "None")]


def test_import_writes_a_teacher_with_its_accuracy(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tenth of the test images; all of them are a slow test."""
    helpers.evaluate_imports_on(1000, monkeypatch)
    code, output, errors = call_jaxkd(*import_arguments(shared_data, tmp_path / "t"))
    assert code == 0, errors
    found = re.search(r"on all 1,000 test images: accuracy ([\d.]+) %, top-5 ", output)
    assert found is not None, output
    assert float(found[1]) == pytest.approx(73.8, abs=0.21)  # what the first 1,000 of 10,000 have
    assert teachers.load(tmp_path / "t").description.test_accuracy == pytest.approx(float(found[1]))


@pytest.mark.slow
def test_import_finds_the_publishers_accuracy(shared_data: Path, tmp_path: Path) -> None:
    code, output, errors = run_jaxkd(*import_arguments(shared_data, tmp_path / "t"), optimized=True)
    assert code == 0, errors
    assert "on all 10,000 test images: accuracy 72.63 %, top-5 91.94 %, cross-entropy 1.2946" in output
    assert teachers.load(tmp_path / "t").description.test_accuracy == pytest.approx(72.63)


def import_arguments(shared_data: Path, out: Path) -> list[object]:
    weights = shared_data / "teachers" / "cifar100_resnet56.npz"
    options = ["--model", "resnet56", "--data-dir", shared_data / "tfds", "--out", out]
    normalisation = ["--mean", 0.5070, 0.4865, 0.4409, "--std", 0.2673, 0.2564, 0.2761]
    return ["import", weights, *options, *normalisation]


def test_every_mistake_has_its_message(
    tmp_path: Path, tiny: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, with its eight devices: a child for each would take a minute."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    distill = ["distill", "--data", tiny, "--teacher", teacher]
    for arguments, code, message in (
        (["train", "--model", "resnet21"], 2, 'unknown model "resnet21"; did you mean "resnet'),
        (
            ["train", "--data", "mnistt"],
            2,
            'unknown data set "mnistt"; did you mean "mnist"? Accepted: digits',
        ),
        (
            ["train", "--data", "cifar100", "--data-dir", tmp_path / "empty"],
            1,
            "no split 'train' of cifar100 in",
        ),
        (["distill", "--data", "digits", "--teacher", teacher], 1, "has 3 classes and digits has 10"),
        ([*distill, "--batch-size", 12], 1, "a batch of 12 cannot be shared equally by 8 devices"),
        ([*distill, "--method.temperature", "hot"], 2, "temperature must be a positive number, max_logit"),
        ([*distill, "--method", "ttm", "--method.temperature", 3], 2, "method ttm has no option temperature"),
        (["evaluate", teacher, "--data", "nodata"], 2, 'unknown data set "nodata"'),
        (["models", "nope"], 2, 'unknown model "nope"'),
        (["methods", "nope"], 2, 'unknown method "nope"'),
        (["train", "--seed", 2**32 - 1, "--seeds", 2], 2, "reach 2**32"),
        (["train", "--epochs", 1, "--warmup-epochs", 5], 2, "must be less than the number of epochs, 1"),
        (["train", "--data", tiny, "--workers", 4], 1, "leave it out, or stream them with --stream"),
        (["train", "--optimizer", "adam"], 2, 'unknown optimizer "adam"; did you mean "adamw"'),
        ([*distill, "--method", "kdd"], 2, 'unknown method "kdd"; did you mean "kd"'),
        (["distill", "--teacher", "nobody"], 1, 'no teacher "nobody"'),
        (
            ["import", tmp_path / "broken.pt", "--model", "resnet8"],
            1,
            "is damaged or not a file of weights",
        ),
        (["report", tmp_path / "empty"], 1, "is the folder of neither a run"),
        (["train", "--epochs", "0"], 2, "--epochs must be at least 1, got 0"),
        (["train", "--epochs", "many"], 2, "--epochs"),
        (["distill"], 2, "--teacher"),
        (["distil"], 2, 'unknown command "distil"; did you mean distill?'),
        (["train", "--learning-rate", "nan"], 2, "--learning-rate must be positive, got nan"),
        (
            ["evaluate", teacher, "--data", tiny, "--batch-size", 0],
            2,
            "--batch-size must be at least 1, got 0",
        ),
        (["train", "--data", tmp_path / "empty.npz"], 1, "cannot be read as an .npz file"),
        (["report", tmp_path / "foreign"], 1, "does not belong to a run"),
    ):
        run = (
            []
            if arguments[0] in ("evaluate", "import", "report", "distil", "models", "methods")
            else ["--run", tmp_path / "never"]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in (*arguments, *run)])
        output, errors = capsys.readouterr()
        assert caught.value.code == code, (arguments, errors)
        assert message in " ".join((output + errors).replace("│", " ").split()), arguments
        assert "Traceback" not in errors, arguments
    assert not (tmp_path / "never").exists()


def test_a_poisoned_teacher_is_named(tmp_path: Path, tiny: Path) -> None:
    def poison(variables: dict) -> dict:
        variables["params"]["fc"]["bias"] = np.full(3, np.nan, np.float32)
        return variables

    poisoned = helpers.untrained_teacher(tmp_path / "poisoned", data.load(str(tiny)), change=poison)
    code, _, errors = call_jaxkd("distill", "--data", tiny, "--teacher", poisoned, "--run", tmp_path / "run")
    assert code == 1
    assert (
        "step 0: the teacher's logits are NaN or infinite for 40 examples; there is no checkpoint yet"
        in errors
    )
