"""Sums in one order: several threads add up in another one on each number of cores, and sometimes from run to run.

What is fitted must not depend on that. Measured on two cores, one thread is no slower either: the matrices here are
small, and threads that wait for each other spin (k-means took eight times the processor time).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS and OpenMP compute in one thread; a decorator, too.

    Forests grow their trees in threads of their own, one tree in each, which changes nothing.
    """
    from threadpoolctl import threadpool_limits

    for module in ("scipy.linalg", "sklearn.utils._openmp_helpers"):  # what is loaded later would not be limited
        importlib.import_module(module)
    with threadpool_limits(limits=1):
        yield
