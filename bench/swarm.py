#!/usr/bin/env python3
"""A thousand hosts on one machine: flips, and what renewals cost.

  bench/swarm.py [--hosts 1000] [--rounds 5] [--lease-s 15]

The coordinator is the real program, in a process of its own. All agents and guards share a second process, each with its own
certificate, stream over mutual TLS on loopback, journal, blobs, socket and threads: the processes are what two cores cannot hold a
thousand times, and nothing else is left out. The driver is `link`.

Flips: `muster flip`, strict and fast in turns, from one of two small releases to the other. The spread is that of the links' change
times, the dark window the hosts' own; the coordinator's CPU time is that of the whole command, its memory the most it ever had.

Renewals, for each lease D: the disk of one host's guard hangs when it arms, so that the fleet cannot become armed while the
coordinator waits for it (`arm_timeout_ms`), and all others renew their leases every D/3. In that time is taken what the coordinator's process uses of one core,
less what it uses while the fleet is at rest, and for each renewal the time from when its agent asked to when its guard was told.

What it does not show: a network, and hosts that do not share two cores with each other and the coordinator.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import report
from fleet import FLEET, Fleet, HungDisk

FENCE_MS = 5_000
# Every host arms, and hears the decision, in three quarters of this.
FAST_LEAD_MS = 10_000
ARM_TIMEOUT_MS = 60_000
PATIENCE_S = 180
TICKS = 100
ISSUING = 8
SETTLE_S = 4.0


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=1000, help="size of the fleet")
    arguments.add_argument("--rounds", type=int, default=5, help="rounds of flips that count, after one that warms up")
    arguments.add_argument("--lease-s", type=float, nargs="*", default=[15], help="leases to renew")
    arguments.add_argument("--hold-s", type=float, default=8,
                           help="how long the fleet is held while it arms; the host whose disk hangs is fenced after a lease")
    arguments.add_argument("--save", default="swarm", metavar="NAME", help="the name of the result")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts()
    programs = report.programs(options)
    if not options.programs:
        report.build("muster-bench", options.profile)
    with Swarm(programs, options.hosts) as swarm:
        flips = flip_rounds(swarm, options.rounds)
        renewals = [renewal_cost(swarm, lease_s, options.hold_s) for lease_s in options.lease_s]
        files = swarm.files()
    for renewal in renewals:
        renewal["latency_ms"] = latencies(swarm.renewals, renewal)
        spent_ms = (renewal["armed_cores"] - renewal["at_rest_cores"]) * (renewal["to_ms"] - renewal["from_ms"])
        renewal["cpu_us_each"] = spent_ms * 1e3 / max(renewal["latency_ms"]["count"], 1)
    show(options.hosts, flips, renewals)
    report.save(options.save, {"machine": machine, "hosts": options.hosts, "open_files": files, "flips": flips,
                               "renewals": renewals})


class Swarm(Fleet):
    """A coordinator's process, and one of all hosts."""

    def __init__(self, programs, hosts):
        self.programs, self.muster_program, self.hosts = programs, programs / "muster", hosts
        self.environment = None
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))
        self.fleet = self.folder / "fleet"
        self.renewals = []
        self.processes = []

    def __enter__(self):
        try:
            self.provision()
            self.coordinator = self.start("muster-coordinator", "run", "--config",
                                          self.fleet / "coordinator/coordinator.toml")
            self.wait(self.is_listening, "the coordinator listens")
            self.apply(15_000)
            self.agents = self.start("muster-bench", "hosts", self.fleet / "hosts", "--renewals",
                                     self.folder / "renewals")
            self.wait(lambda: self.connected() == self.hosts, "all hosts are connected")
            for version in "1", "2":
                self.release(version)
            self.muster("flip", "1", "--timeout", "5m")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait()
        told = self.folder / "renewals"
        self.renewals = [tuple(map(int, line.split())) for line in told.read_text().splitlines()] if told.exists() else []
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words):
        command = [self.muster_program, "--context", self.fleet / "operator/context.toml", "--output", "json",
                   "--no-progress", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    def provision(self):
        """What an operator does by hand: a root, an authority, and a bundle for each host."""
        report.note(f"{self.hosts} hosts: issuing")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        self.muster("init", self.fleet, "--coordinator-address", "{}:{}".format(*self.address), "--fleet", FLEET)
        with concurrent.futures.ThreadPoolExecutor(ISSUING) as issuing:
            list(issuing.map(self.issue, range(1, self.hosts + 1)))
        config = self.fleet / "coordinator/coordinator.toml"
        config.write_text(f"arm_timeout_ms = {ARM_TIMEOUT_MS}\nfast_lead_ms = {FAST_LEAD_MS}\n{config.read_text()}")

    def issue(self, number):
        self.muster("host", "issue", f"host-{number}")
        agent = self.fleet / f"hosts/host-{number}/agent.toml"
        agent.write_text(f"clock_error_ms = 1\n{agent.read_text()}")

    def start(self, program, *words):
        log = open(self.folder / f"{program}.log", "w")
        process = subprocess.Popen([self.programs / program, *map(str, words)], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def apply(self, lease_ms):
        """Gives the fleet a roster of all hosts with this lease."""
        path = self.folder / f"roster-{time.monotonic_ns()}.toml"
        self.muster("roster", "draft", "--boot-gate", "optional", "--out", path)
        head, hosts = path.read_text().split("[[host]]", 1)
        head = head.split("[policy]")[0]
        policy = (f'[policy]\nboot_gate = "optional"\nclock = "any"\n[policy.timing]\nlease_ms = {lease_ms}\n'
                  f"fence_ms = {FENCE_MS}\n\n")
        path.write_text(f"{head}{policy}[[host]]{hosts}")
        self.muster("roster", "apply", path)

    def is_listening(self):
        with socket.socket() as client:
            return client.connect_ex(self.address) == 0

    def connected(self):
        status = self.run("status")
        listed = json.loads(status.stdout).get("hosts", []) if status.stdout else []
        return sum(host["connected"] for host in listed)

    def phase(self):
        return json.loads(self.run("status").stdout)["phase"]

    def wait(self, condition, what):
        report.note(f"waiting until {what}")
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"it never came about that {what}; see {self.folder}")
            time.sleep(0.2)

    def links(self):
        return [self.fleet / f"hosts/host-{number}/fleets/{FLEET}/current" for number in range(1, self.hosts + 1)]

    def files(self):
        """How many descriptors each process holds."""
        count = {name: len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir()))
                 for name, process in (("coordinator", self.coordinator), ("hosts", self.agents))}
        return {**count, "hosts_threads": len(list(pathlib.Path(f"/proc/{self.agents.pid}/task").iterdir()))}


def flip_rounds(swarm, rounds):
    strict_and_fast = report.in_turn(rounds, {
        "strict": lambda: flip(swarm, "strict"),
        "fast": lambda: flip(swarm, "fast"),
    })
    return {mode: {key: report.spread([run[key] for run in runs]) for key in runs[0]}
            for mode, runs in strict_and_fast.items()}


def flip(swarm, mode):
    links = swarm.links()
    version = "2" if (links[0] / "lib/0").read_text()[0] == "1" else "1"
    spent = cpu_s(swarm.coordinator.pid)
    begun = time.perf_counter()
    ended = swarm.muster("flip", version, "--mode", mode, "--timeout", "5m")
    taken = time.perf_counter() - begun
    window = ended["dark_window"]
    changed = [link.lstat().st_ctime_ns for link in links]
    sample = {"spread_ms": (max(changed) - min(changed)) / 1e6, "told_spread_ms": window["spread_ms"], "seconds": taken,
              "coordinator_cpu_s": cpu_s(swarm.coordinator.pid) - spent,
              "coordinator_rss_mib": memory_mib(swarm.coordinator.pid, "VmRSS"),
              "coordinator_peak_mib": memory_mib(swarm.coordinator.pid, "VmHWM")}
    if mode == "strict":
        sample |= {"dark_ms": window["measured_ms"], "dark_bound_ms": window["bound_ms"]}
    return sample


def renewal_cost(swarm, lease_s, hold_s):
    lease_ms = round(lease_s * 1000)
    swarm.apply(lease_ms)
    time.sleep(SETTLE_S)
    at_rest = share(swarm.coordinator.pid, 10)
    version = "2" if (swarm.links()[1] / "lib/0").read_text()[0] == "1" else "1"
    with HungDisk(swarm.fleet / "hosts/host-1"):
        command = [swarm.muster_program, "--context", swarm.fleet / "operator/context.toml", "flip", version,
                   "--timeout", "5m"]
        flipping = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        swarm.wait(lambda: has_ended(flipping) or swarm.phase() == "arming", f"the fleet arms for {lease_s} s")
        # The asking for the phase is not to be counted, nor is the arming.
        time.sleep(SETTLE_S)
        begun = boot_ms()
        armed = share(swarm.coordinator.pid, hold_s)
        ended = boot_ms()
    code = flipping.wait()
    return {"lease_ms": lease_ms, "from_ms": begun, "to_ms": ended, "at_rest_cores": at_rest, "armed_cores": armed,
            "exit_code": code}


def has_ended(flipping):
    """A flip that has ended while its fleet should be arming was refused, and says why."""
    if flipping.poll() is not None:
        raise SystemExit(f"the flip ended early:\n{flipping.stderr.read()}")
    return False


def latencies(renewals, held):
    """From when an agent asked, which is the lease before the deadline that it got, to when its guard was told."""
    lease_ms = held["lease_ms"]
    told = sorted(at - (deadline - lease_ms) for at, deadline in renewals if held["from_ms"] <= at <= held["to_ms"])
    if len(told) < 2:
        return {"count": len(told)}
    cuts = statistics.quantiles(told, n=100, method="inclusive")
    return {"count": len(told), "p50": cuts[49], "p99": cuts[98], "max": told[-1], "allowed": lease_ms / 3}


def show(hosts, flips, renewals):
    print(f"{hosts} hosts in one process, driver link\n")
    keys = ("dark_ms", "dark_bound_ms", "spread_ms", "told_spread_ms", "seconds", "coordinator_cpu_s", "coordinator_peak_mib")
    rows = [[mode, *(f"{figure[key]['median']:.1f}" if key in figure else "" for key in keys)]
            for mode, figure in flips.items()]
    report.table(["mode", "dark window ms", "at most ms", "spread ms", "as told ms", "whole command s",
                  "coordinator CPU s", "coordinator peak MiB"], rows)
    rows = []
    for held in renewals:
        found = held["latency_ms"]
        latency = [f"{found[key]:.0f}" if key in found else "" for key in ("p50", "p99", "max", "allowed")]
        rows.append([f"{held['lease_ms'] / 1000:g} s", found["count"], f"{held['cpu_us_each']:.0f}", *latency])
    report.table(["lease", "renewals", "coordinator CPU us each", "p50 ms", "p99 ms", "max ms", "D/3 ms"], rows)


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def share(pid, seconds):
    """What a process uses of one core."""
    spent, begun = cpu_s(pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s(pid) - spent) / (time.perf_counter() - begun)


def memory_mib(pid, field):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def boot_ms():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


if __name__ == "__main__":
    main()
