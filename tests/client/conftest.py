"""What the tests of the client share."""

import asyncio

import pytest
import uvloop

from tests.support.both_clients import Caller, call_in_task, call_in_thread, call_in_uvloop_task


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """Its first loop opens descriptors that stay for the whole process: they are no test's leak."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(params=[call_in_thread, call_in_task, call_in_uvloop_task], ids=["thread", "task", "uvloop"])
def call(request: pytest.FixtureRequest) -> Caller:
    return request.param  # type: ignore[no-any-return]
