#!/usr/bin/env python3
"""From a partition to the fence: hosts that are cut off while they are armed.

  bench/partition.py [--hosts 8] [--rounds 10] [--lease 2s] [--driver link supervise]

All hosts are real processes on this machine, as `muster dev up` starts them. In each round the disk of one host's guard hangs when
it arms, so that the others stay armed and renew their leases. At a random moment of the first half of the lease the coordinator is
suspended: from then on no host hears anything, which is a partition as every host sees one. For each host is taken:
  after the cut       until nothing is served: the link is gone, or the service's process
  after the deadline  the same, from the deadline that the host's guard held last, which is D after its last granted request

The deadline is the one that the guard writes down with its fence, the process's end is read from a descriptor of it, the link is
looked at every millisecond. No fence may come before its deadline, none later than F after it, and none later than D + F after the cut.

It has no peer. What it does not show: clocks that differ, and machines under so much load that F is not kept: there a host refuses to
take part.
"""

import argparse
import json
import os
import pathlib
import random
import select
import signal
import subprocess
import time

import report
from fleet import FLEET, Fleet, HungDisk

FENCE_MS = 2000
SERVICE = "#!/bin/sh\nexec sleep 1000000\n"
PATIENCE_S = 60


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=8, help="size of the fleet, with the one whose disk hangs")
    arguments.add_argument("--rounds", type=int, default=10, help="partitions for each driver")
    arguments.add_argument("--lease-ms", type=int, default=2000, help="D")
    arguments.add_argument("--driver", nargs="+", choices=["link", "supervise"], default=["link", "supervise"])
    arguments.add_argument("--seed", type=int, default=1, help="of the moments")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts()
    programs = report.programs(options)
    moments = random.Random(options.seed)
    drivers = {driver: partitions(programs, driver, options, moments) for driver in options.driver}
    show(drivers, options.lease_ms)
    report.save("partition", {"machine": machine, "lease_ms": options.lease_ms, "fence_ms": FENCE_MS, "drivers": drivers})
    kept(drivers, options.lease_ms)


def partitions(programs, driver, options, moments):
    supervise = ["./bin/service"] if driver == "supervise" else []
    with Fleet(programs, options.hosts, supervise=supervise, lease=f"{options.lease_ms}ms") as fleet:
        for version in "1", "2":
            fleet.release(version, [("service", SERVICE)])
        fleet.muster("flip", "1")
        fences = []
        for number in range(options.rounds):
            fences += partition(fleet, driver, moments.uniform(0, options.lease_ms / 2000))
            settle(fleet)
            report.note(f"{driver}: round {number + 1} of {options.rounds}")
    return {key: report.spread([fence[key] for fence in fences]) for key in fences[0]}


def partition(fleet, driver, moment_s):
    hosts = [pathlib.Path(host["state"]) for host in fleet.up["hosts"]]
    coordinator, cut_off = fleet.up["coordinator_pid"], hosts[1:]
    services = [service_of(host) if driver == "supervise" else None for host in cut_off]
    with HungDisk(hosts[0]):
        flipping = subprocess.Popen([fleet.muster_program, "--context", fleet.folder / "fleet/operator/context.toml",
                                     "flip", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(lambda: all(hold(host, "armed") for host in cut_off), "the hosts are armed")
        time.sleep(moment_s)
        os.kill(coordinator, signal.SIGSTOP)
        cut = boot_ms()
        try:
            dark = await_dark(cut_off, services)
            wait(lambda: all(hold(host, "fenced") for host in cut_off), "the guards have noted their fences")
            due = [hold(host, "fenced")["due_boot_ms"] for host in cut_off]
        finally:
            os.kill(coordinator, signal.SIGCONT)
    flipping.wait()
    return [{"after_cut_ms": at - cut, "after_deadline_ms": at - until} for at, until in zip(dark, due, strict=True)]


def await_dark(hosts, services):
    """When each host stopped serving, in milliseconds since boot."""
    dark = [None] * len(hosts)
    ended = select.poll()
    for service in services:
        if service is not None:
            ended.register(service, select.POLLIN)
    give_up = time.monotonic() + PATIENCE_S
    while None in dark:
        if time.monotonic() > give_up:
            raise SystemExit(f"not fenced: {[host.name for host, at in zip(hosts, dark) if at is None]}")
        gone = {descriptor for descriptor, _ in ended.poll(1)}
        for index, (host, service) in enumerate(zip(hosts, services)):
            is_dark = service in gone if service is not None else not os.path.lexists(link(host))
            if dark[index] is None and is_dark:
                # After the look, so that no fence seems earlier than it was.
                dark[index] = boot_ms()
                if service is not None:
                    ended.unregister(service)
        if not gone:
            time.sleep(0.001)
    for service in filter(None, services):
        os.close(service)
    return dark


def link(host):
    return host / "fleets" / FLEET / "current"


def hold(host, state):
    """What a guard has written of its deadline, if it is in this state."""
    written = json.loads((host / "fleets" / FLEET / "lease.json").read_text())["hold"]
    return written.get(state) if isinstance(written, dict) else None


def service_of(host):
    """A descriptor of the main process of a host's service."""
    run = json.loads((host / "fleets" / FLEET / "run.json").read_text())
    return os.pidfd_open(run["main"]["pid"])


def settle(fleet):
    """Until every host serves again what it served."""
    wait(lambda: all(link.is_symlink() for link in fleet.links()) and all_serve(fleet), "all hosts serve again")


def all_serve(fleet):
    done = fleet.run("status", "--check")
    return done.returncode == 0


def wait(condition, what):
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit(f"it never came about that {what}")
        time.sleep(0.01)


def show(drivers, lease_ms):
    rows = []
    for driver, figures in drivers.items():
        cut, due = figures["after_cut_ms"], figures["after_deadline_ms"]
        rows.append([driver, len(cut["samples"]), cut["min"], f"{cut['median']:.0f}", cut["max"], lease_ms + FENCE_MS,
                     due["min"], f"{due['median']:.0f}", due["max"], FENCE_MS])
    report.table(["driver", "fences", "after the cut: min ms", "median", "max", "D + F", "after the deadline: min ms",
                  "median", "max", "F"], rows)


def kept(drivers, lease_ms):
    """Fails if a single fence came early or late."""
    for driver, figures in drivers.items():
        cut, due = figures["after_cut_ms"], figures["after_deadline_ms"]
        if due["min"] < 0 or due["max"] > FENCE_MS or cut["max"] > lease_ms + FENCE_MS:
            raise SystemExit(f"{driver}: a fence was not within its bounds")


def boot_ms():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


if __name__ == "__main__":
    main()
