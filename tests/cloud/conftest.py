"""A bucket for each test, and leases that expire soon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """A running `BucketServer`, which this process and its children use for gs://kd-bucket."""
    import bucket_server  # skips where the emulator is not installed

    from jaxkd.files import leases, places

    running = bucket_server.BucketServer()
    for name, value in bucket_server.environment(running.url, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(leases, "SECONDS", 1.0)
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(places, "RETRY_SECONDS", 30.0)
    monkeypatch.setattr(places, "_KNOWN", set())
    yield running
    running.stop()
