"""The command line: one subcommand per job, with options built from dataclasses next to their code.

Exit codes: 0 done; 1 failed, with a message; 2 the options are wrong; 75 stopped by a signal, and the same
command resumes; 76 another process of the run was lost, and the same command in all processes resumes from
the last checkpoint; 130 interrupted with nothing to save; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import jax

from jaxkd._extras import require

require("train", "tyro")

from jaxkd._paths import cache_folder  # noqa: E402
from jaxkd.cli.commands import COMMANDS, check_names  # noqa: E402
from jaxkd.cli.parse import parse  # noqa: E402
from jaxkd.cpu import tune_cpu  # noqa: E402
from jaxkd.runs.processes import PeerLostError, is_joint, leave  # noqa: E402
from jaxkd.signals import Stopped, exit_when_stopped, report  # noqa: E402

EXIT_FAILED = 1
EXIT_PEER_LOST = 76
EXIT_OUTPUT_CLOSED = 141  # a shell's exit code for a program that SIGPIPE ended

_DESCRIPTION = (
    "Knowledge distillation in JAX with a temperature that nobody has to tune. Start with `jaxkd distill "
    "--teacher digits-resnet20`. Every run can be stopped with Ctrl-C; the same command resumes it. With "
    "--config FILE, a run's config.json, train and distill read its options and resume it. "
    "--version prints the version; --tyro-print-completion SHELL (bash, zsh or fish) prints completions."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command given by the arguments, and exits with its code."""

    def command() -> None:
        name, options = parse({name: kind for name, (kind, _) in COMMANDS.items()}, arguments, _DESCRIPTION)
        check_names(options)
        COMMANDS[name][1](options)

    run(command)


def run(command: Callable[[], object]) -> None:
    """Runs a function as a command, with its settings, messages and exit codes; also for scripts."""
    with exit_when_stopped():
        try:
            tune_cpu()
            keep_compiled_programs()
            command()
        except Stopped as stopped:
            sys.exit(report(stopped))
        except KeyboardInterrupt as interrupt:
            code = report(interrupt)
        except BrokenPipeError:  # the reader of the output has closed it, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            code = EXIT_OUTPUT_CLOSED
        except PeerLostError as error:
            _failed(error)
            code = EXIT_PEER_LOST
        except (ValueError, TypeError, ImportError, FloatingPointError, OSError) as error:
            code = _failed(error)
        except Exception:
            if not is_joint():
                raise
            # Python's usual exit would wait for the other processes, and they for this one.
            traceback.print_exc()
            code = EXIT_FAILED
        else:
            return
        leave(code)


def keep_compiled_programs() -> None:
    """Caches compiled programs for later processes, in `~/.cache/jaxkd/compiled`.

    JAX's own variables take precedence: `JAX_COMPILATION_CACHE_DIR` sets another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run compiles some small programs too, and by default those under a second are not cached.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _failed(error: Exception) -> int:
    if os.environ.get("JAXKD_TRACEBACK"):
        raise error
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    print(f"jaxkd: {text}\n(JAXKD_TRACEBACK=1 shows where)", file=sys.stderr, flush=True)
    return EXIT_FAILED
