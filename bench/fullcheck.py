#!/usr/bin/env python3
"""A full check of a release of 45,000 files, beside AIDE and a watcher that only listens.

  bench/fullcheck.py [--files 45000] [--rounds 5]

A fleet of one host serves a release that is made for this: folders of 500 files of 4 KiB on average. All three look at the tree that its agent
has installed, page cache warm.
  muster       `muster check`: the agent reads every byte on all cores, compares with the manifest and signs; coordinator and command verify it.
               CPU is that of all three together
  aide         aide --check against its database: SHA-256, type, permissions, size and the target of links, and no other digest
  inotifywait  one that listens to the whole tree: from its start until it says that its watches are established. It reads nothing: what has
               changed before, or while it did not run, it never finds

Wall clock and CPU (user and system, all threads). They take turns over several rounds; ratios are within each round. Needs `aide` and
`inotifywait` (inotify-tools).
"""

import argparse
import os
import pathlib
import random
import resource
import subprocess
import tempfile
import time

import report
from fleet import Fleet

FOLDER_FILES = 500
BYTES_MAX = 8192


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--files", type=int, default=45000)
    arguments.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that warms up")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts(aide=aide_version())
    with Fleet(report.programs(options), 1) as fleet, tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        folder = pathlib.Path(folder)
        source, config = folder / "tree", folder / "aide.conf"
        size = plant(source, options.files)
        fleet.muster("release", "push", source, "--version", "1")
        fleet.deploy("1")
        fleet.muster("flip", "1")
        tree = fleet.links()[0].resolve()
        daemons = [fleet.up["coordinator_pid"], fleet.up["hosts"][0]["agent_pid"]]
        config.write_text(f"database_in=file:{folder}/aide.db\ndatabase_out=file:{folder}/aide.db\n"
                          f"gzip_dbout=no\nreport_url=stdout\n{tree} sha256+ftype+p+s+l\n")
        aide(config, "--init")
        samples = report.in_turn(options.rounds, {
            "muster": lambda: cost(daemons, lambda: fleet.muster("check", "--release", "1")),
            "aide": lambda: cost([], lambda: aide(config, "--check")),
            "inotifywait": lambda: listening(tree),
        })
    show(samples, options.files, size, machine)


def plant(tree, files):
    """Answers the bytes of all files."""
    chance, size = random.Random(1), 0
    for number in range(files):
        file = tree / str(number // FOLDER_FILES) / str(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        size += file.write_bytes(chance.randbytes(chance.randrange(BYTES_MAX)))
    return size


def aide(config, verb):
    """Fails if it finds anything."""
    subprocess.run(["aide", f"--config={config}", verb], stdout=subprocess.DEVNULL, check=True)


def cost(daemons, act):
    """Seconds by the clock, and of CPU: what is run for it, and what these processes do meanwhile."""
    begun, before = time.perf_counter(), children() + sum(map(cpu_of, daemons))
    act()
    return time.perf_counter() - begun, children() + sum(map(cpu_of, daemons)) - before


def cpu_of(pid):
    """User and system, of threads that have ended as well."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listening(tree):
    """The same of a watcher until it listens."""
    begun, before = time.perf_counter(), children()
    watcher = subprocess.Popen(["inotifywait", "--monitor", "--recursive", tree],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in watcher.stderr:
        if "Watches established" in line:
            break
    else:
        raise SystemExit("inotifywait does not listen")
    took = time.perf_counter() - begun
    watcher.terminate()
    watcher.wait()
    return took, children() - before


def children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def aide_version():
    said = subprocess.run(["aide", "--version"], capture_output=True, text=True, check=True)
    return (said.stdout + said.stderr).splitlines()[0]


def show(samples, files, size, machine):
    sides = {name: {"wall": [wall for wall, _ in taken], "cpu": [cpu for _, cpu in taken]}
             for name, taken in samples.items()}
    ratios = {name: {kind: report.ratio(sides[name][kind], sides["muster"][kind]) for kind in ("wall", "cpu")}
              for name in sides if name != "muster"}
    print(f"{files} files, {size / 1e6:.0f} MB\n")
    rows = []
    for name, side in sides.items():
        figures = [f"{report.spread(side[kind])['median']:.3f}" for kind in ("wall", "cpu")]
        factors = [f"{ratios[name][kind]['median']:.2f}" for kind in ("wall", "cpu")] if name in ratios else ["", ""]
        rows.append([name, *figures, *factors])
    report.table(["", "wall s", "CPU s", "wall / muster's", "CPU / muster's"], rows)
    report.save("fullcheck", {"machine": machine, "files": files, "bytes": size, "ratios": ratios,
                              "seconds": {name: {kind: report.spread(taken) for kind, taken in side.items()}
                                          for name, side in sides.items()}})


if __name__ == "__main__":
    main()
