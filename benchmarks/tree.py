"""A reproducible tree of many small files, like source code, documents and configuration with some pictures among them.

Decides sizes and contents from a seed alone: two runs with the same arguments make the same tree. Knows no backup program.
Run as a program of its own, so that what it needs is not counted as the memory of what is measured:

    python benchmarks/tree.py DIR [--files 60000] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator

MEDIAN = 3000
SPREAD = 1.35
"""Standard deviation of the logarithm of a size: nine files of ten lie between 330 bytes and 28 KB, the mean is 7.5 KB."""

LARGEST = 8 << 20
DUPLICATES = 0.10
NOISE = 0.06
"""Share of files that do not compress, as pictures and archives."""

NAMES = ("readme", "notes", "index", "config", "report", "table")
FILES_IN_FOLDER = 40
EPOCH = 1_700_000_000


def make(root: str, files: int, seed: int) -> int:
    """Fill `root` below one top folder; answers the bytes written."""
    chance = random.Random(seed)
    lines = _lines(chance)
    earlier: list[bytes] = []
    written = 0
    for number, path in enumerate(_paths(root, files)):
        if earlier and chance.random() < DUPLICATES:
            content = chance.choice(earlier)
        else:
            content = _content(chance, lines)
            if len(earlier) < 2000:
                earlier.append(content)
        with open(path, "wb") as file:
            file.write(content)
        os.utime(path, (EPOCH + number, EPOCH + number))
        written += len(content)
    return written


def _paths(root: str, files: int) -> Iterator[str]:
    """Two levels of folders, the names as long as real ones."""
    for number in range(files):
        group, place = divmod(number, FILES_IN_FOLDER)
        folder = os.path.join(root, "top", f"project-{group // 30:03d}", f"module_{group:05d}")
        if not place:
            os.makedirs(folder, exist_ok=True)
        yield os.path.join(folder, f"{NAMES[number % len(NAMES)]}_{number:06d}.txt")


def _lines(chance: random.Random) -> list[bytes]:
    """Lines of words whose frequencies fall like those of a language: such text compresses to about a third."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 2) for rank in range(len(letters))]
    words = ["".join(chance.choices(letters, weights, k=chance.randint(2, 10))) for _ in range(20_000)]
    falling = [1 / (rank + 3) for rank in range(len(words))]
    return [" ".join(chance.choices(words, falling, k=chance.randint(1, 12))).encode() + b"\n" for _ in range(60_000)]


def _content(chance: random.Random, lines: list[bytes]) -> bytes:
    size = min(int(chance.lognormvariate(0, SPREAD) * MEDIAN), LARGEST)
    if chance.random() < NOISE:
        return chance.randbytes(size)
    parts = chance.choices(lines, k=size // 24 + 2)
    return b"".join(parts)[:size]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tree of many small files.")
    parser.add_argument("root")
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    written = make(options.root, options.files, options.seed)
    print(f"{options.files:,} files, {written / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
