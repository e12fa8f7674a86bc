"""What the tests of the client share."""

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """Its first loop opens descriptors that stay for the whole process: they are no test's leak."""
    uvloop.run(asyncio.sleep(0))
