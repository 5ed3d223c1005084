"""What docs/cloud_tpu.md types: scripts with a stand-in for gcloud, commands against a server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jaxkd import cli, teachers
from jaxkd.cli.commands import COMMANDS
from jaxkd.cli.parse import parse
from jaxkd.files.places import place

PAGE = (Path(__file__).parents[2] / "docs" / "cloud_tpu.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def script(name: str) -> str:
    """The block that the page says is the file `name`."""
    after = PAGE.split(f"is `{name}`", 1)[1]
    return re.findall(r"^```bash\n(.*?)^```", after, re.MULTILINE | re.DOTALL)[0]


def program(folder: Path, name: str, lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#! /bin/bash\n{lines}")
    file.chmod(0o755)


def run(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with the programs of `folder` before those of the system."""
    known = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "THERE": str(folder), **environment}
    return subprocess.run(
        ["bash", "-c", text], env=known, text=True, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_script(block: str) -> None:
    assert not run(f"bash -n <<'END'\n{block}\nEND", Path("/nowhere")).stderr


def test_a_tpu_that_is_taken_away_is_asked_for_again_and_removed_at_the_end(tmp_path: Path) -> None:
    program(
        tmp_path,
        "gcloud",
        # The states of a request, one for each look; the result is there at the ninth.
        """echo "$*" >> $THERE/calls
        looks=$(grep -c describe $THERE/calls)
        case "$*" in
            "storage ls"*) [ $looks -ge 8 ] ;;
            *describe*) case $looks in 2) echo WAITING_FOR_RESOURCES ;; 3|4|7|8) echo ACTIVE ;;
                        5) echo SUSPENDED ;; *) exit 1 ;; esac ;;
        esac""",
    )
    ended = run(script("keep.sh"), tmp_path, PAUSE="0")
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    changes = [call for call in calls if " create " in call or " delete " in call]
    assert [call.split()[3] for call in changes] == ["create", "delete", "create", "delete"]
    created = shlex.split(changes[0])
    assert {"--spot", "--node-id=kd", "--accelerator-type=v5litepod-8", "--zone=us-west4-a"} <= set(created)
    assert "--metadata-from-file=startup-script=start.sh" in created
    assert "storage ls gs://my-project-kd/runs/resnet8/result.json" in calls


@pytest.mark.parametrize(("codes", "starts"), [("75 76 134 0", 4), ("75 1 0", 2)])
def test_a_worker_starts_again_until_the_run_is_done(tmp_path: Path, codes: str, starts: int) -> None:
    """And installs what is not there, once."""
    program(
        tmp_path / "new",
        "jaxkd",
        """echo "$*" >> $THERE/calls
        set -- $CODES; shift $(($(wc -l < $THERE/calls) - 1)); exit $1""",
    )
    program(
        tmp_path,
        "python3",
        'echo "$*" >> $THERE/installs; mkdir -p $THERE/kd; cp -r $THERE/new $THERE/kd/bin',
    )
    program(tmp_path, "gcloud", "touch $THERE/kd/jaxkd_distillation-1.0-py3-none-any.whl")
    program(tmp_path, "sleep", "")
    text = script("start.sh").replace("/opt/kd", f"{tmp_path}/kd").replace("/var/log", str(tmp_path))
    ended = run(text, tmp_path, CODES=codes)
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == starts
    assert len(set(calls)) == 1
    installs = (tmp_path / "installs").read_text().splitlines()
    assert [words.split()[:3] for words in installs][1:] == [["-m", "uv", "venv"], ["-m", "uv", "pip"]]
    assert installs[2].endswith(f"{tmp_path}/kd/jaxkd_distillation-1.0-py3-none-any.whl[tpu]")


def commands() -> list[list[str]]:
    """The page's jaxkd commands that are complete, in order, for the server's bucket."""
    found = []
    for block in BLOCKS:
        text = re.sub(r"\$\{?BUCKET\}?", "kd-bucket", block.replace("\\\n", " "))
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "jaxkd" and "..." not in words:
                found.append(words[1:])
    return found


def changed(words: list[str], folder: Path) -> list[str]:
    """The same command with data that are at hand, for one epoch, on one device."""
    words = [word.replace("cifar100", "digits").replace("resnet56", "resnet20") for word in words]
    if "--data-dir" in words:
        at = words.index("--data-dir")
        del words[at : at + 2]
    words = [word for word in words if word != "--distributed"]
    files = ("report", "resnet20_digits.pth")
    words[1:] = [str(folder / word) if word in files else word for word in words[1:]]
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "1"
    if words[0] == "distill":
        words += ["--epochs", "1"] if "--epochs" not in words else []
        words += ["--devices", "1"]
        if "--warmup-epochs" in words:
            words[words.index("--warmup-epochs") + 1] = "0"
    return words


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_have_such_options(words: list[str]) -> None:
    name, options = parse({name: kind for name, (kind, _) in COMMANDS.items()}, words, "")
    assert name == words[0]
    assert "BucketPath('gs://kd-bucket/" in repr(options)


@pytest.mark.slow
def test_the_commands_run(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = commands()
    assert [words[0] for words in known] == ["import", "evaluate", "distill", "report", "cache", "distill"]
    weights = tmp_path / "weights.safetensors"
    teachers.export_torch(teachers.load("digits-resnet20"), weights)
    weights.rename(tmp_path / "resnet20_digits.pth")
    for words in known:
        cli.main(changed(words, tmp_path))
    said = capsys.readouterr().out
    assert "its logits from gs://kd-bucket/cache (float16)" in said
    assert (tmp_path / "report" / "report.md").is_file()
    for run_folder in ("resnet8", "cached"):
        assert place(f"gs://kd-bucket/runs/{run_folder}/result.json").is_file()
        assert teachers.describe(f"gs://kd-bucket/runs/{run_folder}").description.model == "resnet8"
