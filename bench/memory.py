#!/usr/bin/env python3
"""Resident memory of idle agents, guards and their coordinator.

  bench/memory.py [--hosts 10 100 250] [--settle-s 20]

For each number of hosts a new fleet is started with `muster dev up`, serves a small release, and is left alone;
then its processes are looked at:
  RSS   VmRSS of /proc/PID/status: all resident pages, those of the program's file included
  own   Private_Clean + Private_Dirty of /proc/PID/smaps_rollup: what this one process costs
  PSS   the same file: shared pages divided by those who share them, so small where many agents run on one machine

What the coordinator grows by for each connected agent is the difference between two fleets divided by that of their
hosts. It has no peer: the targets are those that the design set. What it does not show: memory while measuring,
deploying or flipping; the highest of it is there as `peak` (VmHWM).
"""

import argparse
import pathlib
import statistics
import time

import report
from fleet import Fleet

AGENT_TARGET_KB = 12 * 1024
CONNECTION_TARGET_KB = 80


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 250], help="sizes of the fleet")
    arguments.add_argument("--settle-s", type=float, default=20.0, help="how long a fleet is left alone first")
    options = arguments.parse_args()

    machine = report.facts()
    programs = report.build("muster")
    fleets = [look_at(programs, hosts, options.settle_s) for hosts in sorted(options.hosts)]
    show(fleets)
    growth = [growth_between(few, many) for few, many in zip(fleets, fleets[1:])]
    report.save("memory", {
        "machine": machine,
        "targets": {"agent_rss_kb": AGENT_TARGET_KB, "coordinator_kb_for_each_agent": CONNECTION_TARGET_KB},
        "fleets": fleets,
        "coordinator_growth": growth,
    })


def look_at(programs, hosts, settle_s):
    with Fleet(programs, hosts) as fleet:
        connected = processes(fleet)
        fleet.release("1")
        fleet.muster("flip", "1")
        time.sleep(settle_s)
        idle = processes(fleet)
    return {"hosts": hosts, "connected": connected, "served": idle}


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


def growth_between(few, many):
    """Of the coordinator, in KiB for each host more: just connected, and after one deployment and one flip."""
    more = many["hosts"] - few["hosts"]
    grown = {when: {key: (many[when]["coordinator"][key] - few[when]["coordinator"][key]) / more
                    for key in ("rss_kb", "own_kb")} for when in ("connected", "served")}
    print(f"coordinator, {few['hosts']} to {many['hosts']} agents: "
          f"{grown['connected']['rss_kb']:.1f} KiB for each when just connected, {grown['served']['rss_kb']:.1f} KiB "
          f"after a deployment and a flip (target: under {CONNECTION_TARGET_KB})")
    return {"from": few["hosts"], "to": many["hosts"], **grown}


def show(fleets):
    rows = []
    for fleet in fleets:
        for when in "connected", "served":
            for program in "agent", "guard", "coordinator":
                kb = fleet[when][program]
                target = f"{AGENT_TARGET_KB / 1024:.0f}" if program == "agent" else ""
                rows.append([program, fleet["hosts"], when,
                             *(f"{kb[key] / 1024:.1f}" for key in ("rss_kb", "own_kb", "pss_kb", "peak_kb")), target])
    report.table(["", "hosts", "when", "RSS MiB", "own MiB", "PSS MiB", "peak MiB", "target"], rows)


if __name__ == "__main__":
    main()
