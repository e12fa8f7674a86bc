"""What holds for every test: no descriptor is left open, and no example of Hypothesis is timed."""

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no finding.
settings.register_profile("objmapper", deadline=None)
settings.load_profile("objmapper")


@pytest.fixture(autouse=True, scope="session")
def no_signal_is_ignored() -> None:
    """Processes that tests start inherit what a shell, or nohup, had this one ignore."""
    for number, default_handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default_handler)


def open_descriptors() -> dict[int, str]:
    """What this process has open."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:  # the listing's own
            continue
    return found


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fails a test that leaves a descriptor open, or one more thread of the engine's closing it late."""
    before = open_descriptors()
    yield
    deadline = time.monotonic() + 5
    while leaked := {number: target for number, target in open_descriptors().items() if number not in before}:
        if time.monotonic() > deadline:
            pytest.fail(f"descriptors left open: {leaked}")
        time.sleep(0.002)
        # Not before the first look: it takes longer than most tests.
        gc.collect()
