"""Exact KNN of the appliance against scikit-learn's brute force, at several sizes; ratios from one run.

python benchmarks/knn.py [--rows 5000,50000,500000] [--seconds 2]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from sklearn.neighbors import KNeighborsRegressor

from appliance.routers.families.knn import Knn, KnnParameters
from appliance.routers.strategies import Prompts

NEIGHBOURS, DIMENSIONS, MODELS = 40, 384, 4


def p50(work: Callable[[], object], seconds: float) -> float:
    work()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="5000,50000,500000")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; one prompt, p50 in ms")
    print(f"{'rows':>8} {'ours':>8} {'scikit-learn':>13} {'ratio':>7}")
    for rows in map(int, options.rows.split(",")):
        generator = np.random.default_rng(0)
        vectors = generator.standard_normal((rows, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        outcomes = generator.random((rows, MODELS)).astype(np.float32)
        ours = Knn(tuple("abcd"), vectors, outcomes, KnnParameters(k=NEIGHBOURS))
        theirs = KNeighborsRegressor(NEIGHBOURS, algorithm="brute", metric="cosine").fit(vectors, outcomes)
        prompt = Prompts(("x",), vectors[:1])
        near = ours.scores(prompt)
        assert np.allclose(near, theirs.predict(vectors[:1]), atol=1e-3)
        fast = p50(lambda prompt=prompt, ours=ours: ours.scores(prompt), options.seconds)
        slow = p50(lambda theirs=theirs, vectors=vectors: theirs.predict(vectors[:1]), options.seconds)
        print(f"{rows:8} {fast:8.2f} {slow:13.2f} {slow / fast:6.1f}x")


if __name__ == "__main__":
    main()
