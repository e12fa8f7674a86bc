"""The concurrency models, without the two names that stand for one of them."""

from objmapper_server import Concurrency

MODELS = [
    Concurrency.THREAD_PER_CONNECTION,
    Concurrency.THREAD_POOL,
    Concurrency.WORK_STEALING,
    Concurrency.EPOLL,
]
