"""What the tests of the client share."""

import asyncio

import pytest
import uvloop

from tests.support.callers import Caller, in_task, in_task_of_uvloop, in_thread


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """Its first loop opens descriptors that stay for the whole process: they are no test's leak."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(params=[in_thread, in_task, in_task_of_uvloop], ids=["thread", "task", "uvloop"])
def call(request: pytest.FixtureRequest) -> Caller:
    return request.param  # type: ignore[no-any-return]
