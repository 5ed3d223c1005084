"""What a signal does to a command, in this process; the rest is tested through the command line."""

from __future__ import annotations

import signal

import pytest

from jaxkd.signals import StopRequest, exit_when_stopped


class Destructible:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_swallows_still_stops_a_run() -> None:
    """As in JAX's callback of the garbage collector, where the handler's exception is lost."""
    with exit_when_stopped():
        thing = Destructible()
        del thing  # raises KeyboardInterrupt, which Python reports and forgets
        with StopRequest() as stop:
            assert stop.signal_name == "SIGINT"
    with StopRequest() as stop:
        assert stop.signal_name is None


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_command_ends_with_its_exit_code(name: str, code: int) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, exit_when_stopped():
        signal.raise_signal(signal.Signals[name])
    assert caught.value.code == code
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_that_comes_while_the_handlers_are_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    install = signal.signal

    def and_raise(number: int, handler: object) -> object:
        previous = install(number, handler)  # type: ignore[arg-type]
        if number == signal.SIGTERM:
            signal.raise_signal(number)
        return previous

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", and_raise)
        stop = StopRequest().__enter__()
    assert stop.signal_name == "SIGTERM"
    stop.__exit__(None, None, None)


def test_only_its_own_second_signal_interrupts_a_save() -> None:
    """The name of another process's signal is set from outside; the first of this one is still a first."""
    with StopRequest() as stop:
        stop.signal_name = "SIGTERM"
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
