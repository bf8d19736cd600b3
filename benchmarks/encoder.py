"""The serving encoder against sentence-transformers, and what vectors cost at each length: ratios from one run.

python benchmarks/encoder.py [--encoder DIR] [--seconds 2]

Without a folder it takes the encoder that `appliance train fit` would take, and exports it where there is none yet.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from appliance.routers.encoder import load_encoder
from appliance.training.embedding import cache_directory, find_encoder
from appliance.training.encoder_export import offline_hub, source_directory

LENGTHS = {"a greeting": 3, "a sentence": 20, "64 tokens": 62, "128 tokens": 126}


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
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    encoder = load_encoder(find_encoder(directory=options.encoder, cache=cache_directory(os.environ)))
    with offline_hub():
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        original = SentenceTransformer(str(source_directory()), device="cpu", local_files_only=True)
    print(f"{os.cpu_count()} cores, one thread each; p50 in ms")
    print(f"{'prompt':12} {'int8 ONNX':>10} {'sentence-transformers':>22} {'ratio':>7}")
    for name, words in LENGTHS.items():
        text = "prompt " * words
        fast = p50(lambda text=text: encoder.encode([text]), options.seconds)
        slow = p50(lambda text=text: original.encode([text], show_progress_bar=False), options.seconds)
        print(f"{name:12} {fast:10.2f} {slow:22.2f} {slow / fast:6.1f}x")


if __name__ == "__main__":
    main()
