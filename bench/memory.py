#!/usr/bin/env python3
"""Resident memory of idle agents, guards and their coordinator.

  bench/memory.py [--hosts 10 100 250] [--settle-s 20]

For each number of hosts a new fleet is started with `muster dev up`, serves a small release, and is left alone;
then its processes are looked at:
  RSS   VmRSS of /proc/PID/status: all resident pages, those of the program's file included
  own   Private_Clean + Private_Dirty of /proc/PID/smaps_rollup: what this one process costs
  PSS   the same file: shared pages divided by those who share them, so small where many agents run on one machine

What the coordinator grows by for each connected agent is the difference between two fleets divided by that of their
hosts. `connected` is right after the start; `served` is after one deployment and one flip, when the allocator keeps
what it once needed. Each fleet is started twice: as it is, and with MALLOC_ARENA_MAX=2, with which glibc keeps less
for threads that have long ended.

It has no peer: the targets are those that the design set. What it does not show: memory while measuring, deploying
or flipping; `peak` (VmHWM) has the highest of it.
"""

import argparse
import itertools
import pathlib
import statistics
import time

import report
from fleet import Fleet

AGENT_TARGET_KB = 12 * 1024
CONNECTION_TARGET_KB = 80
VARIANTS = {"as it is": {}, "2 arenas": {"MALLOC_ARENA_MAX": "2"}}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 250], help="sizes of the fleet")
    arguments.add_argument("--settle-s", type=float, default=20.0, help="how long a fleet is left alone first")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts()
    programs = report.programs(options)
    variants = {name: {hosts: look_at(programs, hosts, environment, options.settle_s)
                       for hosts in sorted(options.hosts)}
                for name, environment in VARIANTS.items()}
    show(variants)
    growth = show_growth(variants)
    report.save("memory", {
        "machine": machine,
        "profile": options.profile,
        "targets": {"agent_rss_kb": AGENT_TARGET_KB, "coordinator_kb_for_each_agent": CONNECTION_TARGET_KB},
        "variants": variants,
        "coordinator_growth": growth,
    })


def look_at(programs, hosts, environment, settle_s):
    with Fleet(programs, hosts, environment) as fleet:
        connected = processes(fleet)
        fleet.release("1")
        fleet.muster("flip", "1")
        time.sleep(settle_s)
        served = processes(fleet)
    return {"connected": connected, "served": served}


def processes(fleet):
    agents = [memory(host["agent_pid"]) for host in fleet.up["hosts"]]
    guards = [memory(host["guard_pid"]) for host in fleet.up["hosts"]]
    return {"coordinator": memory(fleet.up["coordinator_pid"]), "agent": medians(agents), "guard": medians(guards)}


def memory(pid):
    """In KiB."""
    fields = {}
    for name in "status", "smaps_rollup":
        for line in pathlib.Path(f"/proc/{pid}/{name}").read_text().splitlines():
            words = line.replace(":", " ").split()
            if words[-1] == "kB":
                fields[words[0]] = int(words[1])
    return {"rss_kb": fields["VmRSS"], "own_kb": fields["Private_Clean"] + fields["Private_Dirty"],
            "pss_kb": fields["Pss"], "peak_kb": fields["VmHWM"]}


def medians(processes):
    return {key: statistics.median(one[key] for one in processes) for key in processes[0]}


def show(variants):
    rows = []
    for name, fleets in variants.items():
        for program in "agent", "guard", "coordinator":
            for hosts, fleet in fleets.items():
                for when, kb in ((when, fleet[when][program]) for when in fleet):
                    target = f"{AGENT_TARGET_KB / 1024:.0f}" if program == "agent" else ""
                    figures = [f"{kb[key] / 1024:.1f}" for key in ("rss_kb", "own_kb", "pss_kb", "peak_kb")]
                    rows.append([f"{program}, {name}", hosts, when, *figures, target])
    report.table(["", "hosts", "when", "RSS MiB", "own MiB", "PSS MiB", "peak MiB", "target"], rows)


def show_growth(variants):
    """Of the coordinator, in KiB for each agent more."""
    growth, rows = [], []
    for name, fleets in variants.items():
        for few, many in itertools.pairwise(fleets):
            grown = {when: (fleets[many][when]["coordinator"]["rss_kb"] - fleets[few][when]["coordinator"]["rss_kb"])
                     / (many - few) for when in fleets[few]}
            growth.append({"variant": name, "from": few, "to": many, "rss_kb": grown})
            rows.append([f"{name}, {few} to {many} agents", *(f"{kb:.0f}" for kb in grown.values()),
                         CONNECTION_TARGET_KB])
    report.table(["coordinator's growth for each agent", "connected KiB", "served KiB", "target"], rows)
    return growth


if __name__ == "__main__":
    main()
