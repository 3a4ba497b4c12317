#!/usr/bin/env python3
"""What an agent and a guard cost that have nothing to do: memory, CPU, and how often they wake up.

  bench/idle.py [--hosts 3] [--seconds 600]

A fleet serves a small release and is left alone for so long; nothing is asked of it meanwhile. Then, for each agent, guard and for the
coordinator:
  RSS, peak   VmRSS and VmHWM of /proc/PID/status
  CPU         what all its threads ran, from /proc/PID/task/*/schedstat, in milliseconds of a core for each second
  wake-ups    how often its threads had waited and ran again (voluntary_ctxt_switches), for each second

Threads that begin and end in between count with what they did while they were there at the end. The look for drift every ten minutes
(`measure_every_s`) is part of it where the time is as long as that. It has no peer: bench/memory.py says what the aims are.
"""

import argparse
import pathlib
import statistics
import time

import report
from fleet import Fleet

AGENT_TARGET_MIB = 12


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=600.0, help="how long the fleet is left alone")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts()
    with Fleet(report.programs(options), options.hosts) as fleet:
        fleet.release("1")
        fleet.muster("flip", "1")
        pids = {"agent": [host["agent_pid"] for host in fleet.up["hosts"]],
                "guard": [host["guard_pid"] for host in fleet.up["hosts"]],
                "coordinator": [fleet.up["coordinator_pid"]]}
        # What follows a flip is no rest.
        time.sleep(min(20.0, options.seconds))
        begun, before = time.monotonic(), {pid: work(pid) for of in pids.values() for pid in of}
        time.sleep(options.seconds)
        took, after = time.monotonic() - begun, {pid: work(pid) for of in pids.values() for pid in of}
        rested = {name: [rest(pid, before[pid], after[pid], took) for pid in of] for name, of in pids.items()}
    rows = [[name, *(f"{statistics.median(one[key] for one in of):.{digits}f}" for key, digits in FIGURES),
             AGENT_TARGET_MIB if name == "agent" else ""] for name, of in rested.items()]
    report.table(["", "RSS MiB", "peak MiB", "CPU ms/s", "wake-ups/s", "aim MiB"], rows)
    report.save("idle", {"machine": machine, "profile": options.profile, "hosts": options.hosts, "seconds": took,
                         "target": {"agent_rss_mib": AGENT_TARGET_MIB}, "processes": rested})


FIGURES = ("rss_mib", 1), ("peak_mib", 1), ("cpu_ms_per_s", 3), ("wakeups_per_s", 2)


def work(pid):
    """Of all threads: nanoseconds run, and how often they had waited."""
    ran, woken = {}, {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        ran[task.name] = int((task / "schedstat").read_text().split()[0])
        woken[task.name] = status(task / "status")["voluntary_ctxt_switches"]
    return ran, woken


def rest(pid, before, after, seconds):
    spent = [sum(count - first.get(task, 0) for task, count in last.items()) / seconds
             for first, last in zip(before, after, strict=True)]
    found = status(pathlib.Path(f"/proc/{pid}/status"))
    return {"rss_mib": found["VmRSS"] / 1024, "peak_mib": found["VmHWM"] / 1024,
            "cpu_ms_per_s": spent[0] / 1e6, "wakeups_per_s": spent[1], "threads": len(after[0])}


def status(path):
    """The lines that are a name and a number."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields


if __name__ == "__main__":
    main()
