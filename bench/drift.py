#!/usr/bin/env python3
"""From a changed byte to the status that shows it.

  bench/drift.py [--hosts 3] [--rounds 200]

A fleet serves a small release. In each round one byte of one file is changed on one host, each host in its turn, and `muster status` is asked
again and again until it names the host as drifted. The time is from the return of the write to the end of the first such command, so it holds the
command itself, whose own time is measured beside it. Then the release is deployed once more, and the round ends when the status names nobody.

It has no peer: what is measured is ours, from the kernel's word (fanotify or inotify) over the agent's measurement and the coordinator.
"""

import argparse
import math
import pathlib
import time

import report
from fleet import FLEET, Fleet

PATIENCE_S = 60


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=3)
    arguments.add_argument("--rounds", type=int, default=200)
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts()
    shown, asked = [], []
    with Fleet(report.programs(options), options.hosts) as fleet:
        fleet.release("1")
        fleet.muster("flip", "1")
        for number in range(options.rounds):
            host = fleet.up["hosts"][number % options.hosts]
            shown.append(change(fleet, host, number))
            fleet.muster("deploy", "1")
            wait(lambda: not drifted(fleet))
            begun = time.perf_counter()
            fleet.muster("status")
            asked.append(time.perf_counter() - begun)
            if number % 20 == 19:
                report.note(f"round {number + 1} of {options.rounds}")
    rows = [[name, *(f"{percentile(samples, at) * 1000:.0f}" for at in (0.5, 0.99, 1.0))]
            for name, samples in (("changed byte to status", shown), ("the command alone", asked))]
    report.table(["", "median ms", "99 % ms", "most ms"], rows)
    report.save("drift", {"machine": machine, "profile": options.profile, "hosts": options.hosts,
                          "shown_s": shown, "command_s": asked})


def change(fleet, host, number):
    """Seconds until the status names the host."""
    tree = pathlib.Path(host["state"]) / "fleets" / FLEET / "current" / "lib"
    file = tree / str(number % 20)
    file.chmod(0o644)
    with open(file, "r+b", buffering=0) as opened:
        opened.write(b"x")
        begun = time.perf_counter()
    wait(lambda: host["name"] in drifted(fleet))
    return time.perf_counter() - begun


def drifted(fleet):
    """The hosts that the status names for what is on their disks."""
    status = fleet.muster("status")
    return {host["host"] for host in status["hosts"]
            if any(blocker["code"] in ("drifted", "mismatch") for blocker in host["blockers"])}


def wait(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing is shown within {PATIENCE_S} s")


def percentile(samples, share):
    """The smallest sample that so many are not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


if __name__ == "__main__":
    main()
