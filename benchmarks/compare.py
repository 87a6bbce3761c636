"""Compares us with other backup programs on one tree of many small files, all in turn.

    python benchmarks/compare.py [--peer restic=PATH] [--files 60000] [--rounds 2] [--check]
    python benchmarks/compare.py --tree DIR [DIR …]         real folders, which are only read

Decides the order of the measurements and what the table holds. Every figure is the minimum of all rounds: the machine's other
work only ever adds. Programs take turns within a round, and the order is reversed from round to round. Only the ratios to restic,
taken from the same rounds, say something about another machine.

Nothing is deleted before the end: ext4 passes over the inodes of files that were deleted in the last five minutes, one by one,
which makes the next program that creates many files pay fourfold for each.
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from programs import UNVERIFIED, Call, Program, found

PEERS = ("restic", "kopia", "rustic", "borg")
ANCHOR = "restic"
FIRST, UNCHANGED, TOUCHED, RENAMED, RESTORE = "first backup", "unchanged", "touched", "renamed folder", "restore"
PHASES = (FIRST, UNCHANGED, TOUCHED, RENAMED, RESTORE)
REPEATS = {UNCHANGED: 3}
SETTLED = 62.0
"""Seconds after which a file's time of change is believed: before that every careful program reads it again."""

_LOOK_EVERY = 0.05
FLOORS = ((FIRST, "wall", 1.2), (FIRST, "memory", 1.2), (UNCHANGED, "wall", 2.0))
SIZE_FLOOR = 0.95


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command took: seconds, and bytes of memory at its highest, all its processes together."""

    wall: float
    cpu: float
    memory: int


@dataclass(slots=True)
class Results:
    """The least of every phase, and the size of the repository after the first backup."""

    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, program: Program, phase: str, cost: Cost) -> None:
        old = self.costs.get((program.name, phase), cost)
        self.costs[program.name, phase] = Cost(min(old.wall, cost.wall), min(old.cpu, cost.cpu), min(old.memory, cost.memory))

    def ratio(self, name: str, phase: str, field: str) -> float | None:
        mine, theirs = self.costs.get((name, phase)), self.costs.get((ANCHOR, phase))
        return getattr(mine, field) / getattr(theirs, field) if mine and theirs else None


def run(call: Call, log: str) -> Cost:
    """The command's own resources and those of its children; its output goes into `log`."""
    os.sync()
    with open(log, "ab") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            call.command,
            env={**os.environ, **call.environment},
            cwd=call.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        with _peaks(child.pid) as peaks:
            _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(call.command)}: exit {child.returncode}\n{_tail(log)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, max(usage.ru_maxrss * unit, sum(peaks.values())))


@contextmanager
def _peaks(pid: int) -> Iterator[Mapping[int, int]]:
    """The peak (bytes) of that process and of each one below it, where /proc tells. What two of them share counts twice, so the
    sum is never too small."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY):
            for process in _family(pid):
                with suppress(OSError), open(f"/proc/{process}/status", encoding="ascii", errors="replace") as lines:
                    # One that has ended, and waits to be noticed, says nothing any more.
                    for line in lines:
                        if line.startswith("VmHWM:"):
                            peaks[process] = int(line.split()[1]) << 10

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield peaks
    finally:
        ended.set()
        watch.join()


def _family(pid: int) -> Iterator[int]:
    yield pid
    for listed in glob.glob(f"/proc/{pid}/task/*/children"):
        with suppress(OSError), open(listed, encoding="ascii") as children:
            for child in children.read().split():
                yield from _family(int(child))


def _tail(log: str) -> str:
    with open(log, errors="replace", encoding="utf-8") as file:
        return file.read()[-2000:]


class Round:
    """One round: fresh repositories for all programs, and every phase for all of them before the next one begins."""

    def __init__(self, programs: Sequence[Program], trees: Sequence[str], work: str, results: Results) -> None:
        self._programs = programs
        self._trees = trees
        self._work = work
        self._results = results

    def phase(self, phase: str) -> None:
        for _ in range(REPEATS.get(phase, 1)):
            for program in self._programs:
                self._one(program, phase)

    def _one(self, program: Program, phase: str) -> None:
        home = os.path.join(self._work, program.name)
        log = os.path.join(self._work, f"{program.name}.log")
        if phase == FIRST:
            os.makedirs(home)
            for call in program.prepare(home, self._trees):
                run(call, log)
        target = os.path.join(self._work, f"restored-{program.name}")
        wanted = program.restore(home, target) if phase == RESTORE else program.backup(home, self._trees)
        if wanted is None:
            return
        cost = run(wanted, log)
        self._results.add(program, phase, cost)
        print(f"  {phase:15} {program.name:12} {cost.wall:7.2f} s {cost.cpu:7.2f} s CPU {cost.memory / 1e6:6.0f} MB", flush=True)
        if phase == FIRST:
            self._results.sizes[program.name] = _size(os.path.join(home, program.repository))


def _size(folder: str) -> int:
    """Bytes of all files, as they are, not as the disk rounds them."""
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)


def touch_all(tree: str) -> None:
    """A new modification time for every file, the content as it was."""
    for at, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(at, name)
            stat = os.lstat(path)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000), follow_symlinks=False)


def rename_top(tree: str) -> None:
    """The one top folder of the generated tree gets another name."""
    old, new = ("top", "moved") if os.path.isdir(f"{tree}/top") else ("moved", "top")
    os.rename(f"{tree}/{old}", f"{tree}/{new}")


def measure(programs: Sequence[Program], options: argparse.Namespace, work: str) -> Results:
    results = Results()
    generated = os.path.join(work, "tree")
    trees = [os.path.abspath(tree) for tree in options.tree] or [generated]
    if not options.tree:
        maker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tree.py")
        command = (sys.executable, maker, generated, "--files", str(options.files), "--seed", str(options.seed))
        subprocess.run(command, check=True)
    touched = time.monotonic()
    for number in range(options.rounds):
        time.sleep(0 if options.tree else max(0.0, touched + SETTLED - time.monotonic()))
        print(f"round {number + 1} of {options.rounds}", flush=True)
        folder = os.path.join(work, f"round{number}")
        one = Round(programs[:: -1 if number % 2 else 1], trees, folder, results)
        for phase in [phase for phase in PHASES if phase in options.phase]:
            if phase in (TOUCHED, RENAMED) and options.tree:
                continue
            if phase == TOUCHED:
                touch_all(generated)
                touched = time.monotonic()
            if phase == RENAMED:
                rename_top(generated)
            one.phase(phase)
    return results


def table(programs: Sequence[Program], results: Results) -> str:
    """Markdown: a row for each phase and program."""
    lines = [
        f"| phase | program | wall s | CPU s | memory MB | wall / {ANCHOR} | memory / {ANCHOR} |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for phase in PHASES:
        for program in programs:
            cost = results.costs.get((program.name, phase))
            if cost is None:
                continue
            ratios = [results.ratio(program.name, phase, field) for field in ("wall", "memory")]
            cells = " | ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {phase} | {program.name} | {cost.wall:.2f} | {cost.cpu:.2f} | {cost.memory / 1e6:.0f} | {cells} |")
    lines += ["", f"| program | repository MB | size / {ANCHOR} | version |", "|---|---:|---:|---|"]
    anchor = results.sizes.get(ANCHOR)
    for program in programs:
        size = results.sizes.get(program.name, 0)
        ratio = f"{size / anchor:.2f}" if anchor else "–"
        lines.append(f"| {program.name} | {size / 1e6:.1f} | {ratio} | {program.version} |")
    return "\n".join(lines)


def below_floor(results: Results, name: str) -> list[str]:
    """What is slower or larger than promised; a floor without its measurement does not hold either."""
    failed = []
    for phase, field_, limit in FLOORS:
        ratio = results.ratio(name, phase, field_)
        if ratio is None:
            failed.append(f"{phase}: no figures of {ANCHOR}")
        elif ratio > limit:
            failed.append(f"{phase}: {field_} is {ratio:.2f} times {ANCHOR}'s, at most {limit:g} is allowed")
    size = results.sizes[name] / results.sizes[ANCHOR] if ANCHOR in results.sizes else 0.0
    if size > SIZE_FLOOR:
        failed.append(f"the repository is {size:.2f} times as large as {ANCHOR}'s, at most {SIZE_FLOOR:g} is allowed")
    return failed


def _peers(values: Sequence[str]) -> Mapping[str, str]:
    pairs = [value.partition("=") for value in values]
    return {name: os.path.abspath(os.path.expanduser(path)) for name, _, path in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare with other backup programs.")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help=f"one of {', '.join(PEERS)}")
    parser.add_argument("--only", action="append", default=[], choices=PEERS, help="these peers alone")
    parser.add_argument("--against", metavar="DIR", help="another checkout of ourselves, measured too")
    parser.add_argument("--unverified", action="store_true", help="ourselves with uploads.verify switched off, measured too")
    parser.add_argument("--tree", nargs="+", default=[], metavar="DIR", help="real folders instead of a generated tree")
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--phase", action="append", choices=PHASES[1:], help="besides the first backup, these alone")
    parser.add_argument("--work", help="where trees and repositories go; default: the folder for temporary files")
    parser.add_argument("--check", action="store_true", help="exit 1 when we are slower or larger than promised")
    options = parser.parse_args()
    options.phase = [FIRST, *options.phase] if options.phase else list(PHASES)
    names = (*(options.only or PEERS), *([UNVERIFIED] if options.unverified else []))
    programs = found(_peers(options.peer), names, options.against)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.work) as work:
        results = measure(programs, options, work)
    print(f"\n{platform.platform()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n\n{table(programs, results)}")
    failed = below_floor(results, programs[0].name) if options.check else []
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
