"""Work done a few steps ahead, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_order(tasks: Iterable[Callable[[], T]], ahead: int, threads: int | None = None) -> Generator[T, None, None]:
    """The results of `tasks`, in their order, with up to `ahead` of them in progress or waiting to be taken.

    threads: that work on them, `ahead` if left out. `tasks` is advanced by the taker's own thread.

    Raises: what the first failing task raises. Leaving the generator drops what has not begun, and does
    not wait for the rest.
    """
    left = iter(tasks)
    pool = ThreadPoolExecutor(threads or ahead, thread_name_prefix="villa-ahead")
    try:
        waiting: deque[Future[T]] = deque(pool.submit(task) for task in islice(left, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(task) for task in islice(left, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
