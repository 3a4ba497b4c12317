#!/usr/bin/env python3
"""One flip of a whole fleet, beside Ansible.

  bench/flip.py [--rounds 7] [--hosts 10 32 100] [--driver link supervise] [--no-peers]

  muster         `muster flip`, strict: a coordinator, and an agent and a guard for each host, all real
                 processes on this machine with mutual TLS
  muster, fast   `muster flip --mode fast`: all hosts at one instant, which the coordinator sets 2 s ahead
  ansible        `ansible -f N -m ansible.builtin.file` with `state=link`, local connection: what is usually
                 written
  ansible, raw   `ansible -f N -m ansible.builtin.raw` with `ln -sfn`, local connection: the least that Ansible
                 can do for a host

Every run takes all N links from one of two small releases to the other. The spread is taken from the links
themselves, for all sides alike: the change time of the last link less that of the first, and at least one tick of
the clock that the kernel takes such times from. In that time some hosts have the new release and others do not have
it. Muster also says how long nobody served (dark window): a strict
flip has no instant at which two releases are served, and this is its price. With Ansible and in fast mode the two releases are
served side by side for as long as the spread.

With the driver `supervise` each host's guard stops one process and starts another; there the times are the guards' own, from
the first process that was gone to the last that was started, and Ansible has no part.

What it does not compare: a network, and what else `muster flip` does. It has every host measure the release before
and after, and is refused if one of them differs; Ansible only sets the links. All N agents share the cores of one
machine, which is harder on them than N machines are.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time

import report
from fleet import Fleet

TARGET = 10.0
DARK_AIM_MS, SKEW_AIM_MS, AIM_HOSTS = 250, 20, 100
# The kernel takes a file's times from a clock that ticks; a shorter spread than one tick cannot be told from none.
CLOCK_REALTIME_COARSE = 5
TICK_MS = time.clock_getres(CLOCK_REALTIME_COARSE) * 1e3
SERVICE = "#!/bin/sh\nexec sleep 1000000\n"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up")
    arguments.add_argument("--hosts", type=int, nargs="+", default=[10, 32, 100], help="sizes of the fleet")
    arguments.add_argument("--driver", nargs="+", choices=["link", "supervise"], default=["link", "supervise"])
    arguments.add_argument("--no-peers", action="store_true", help="Muster alone")
    arguments.add_argument("--save", default="flip", metavar="NAME", help="the name of the result")
    report.program_options(arguments)
    options = arguments.parse_args()

    versions = {} if options.no_peers else {"ansible": report.first_line("ansible", "--version")}
    machine = report.facts(**versions)
    programs = report.programs(options)
    sizes = [size(programs, driver, hosts, options) for driver in options.driver for hosts in options.hosts]
    aim = {"hosts": AIM_HOSTS, "dark_ms": DARK_AIM_MS, "skew_ms": SKEW_AIM_MS}
    report.save(options.save, {"machine": machine, "target": TARGET, "aim": aim, "sizes": sizes})


def size(programs, driver, hosts, options):
    supervise = ["./bin/service"] if driver == "supervise" else []
    # A hundred guards that try out at once how long a fence takes share two cores; F is a quarter of the lease.
    lease = "15s" if driver == "supervise" else None
    with Fleet(programs, hosts, supervise=supervise, lease=lease) as fleet, \
            tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        for version in "1", "2":
            fleet.release(version, [("service", SERVICE)])
        contestants = {
            "muster": lambda: muster_flip(fleet, driver, "strict"),
            "muster, fast": lambda: muster_flip(fleet, driver, "fast"),
        }
        if driver == "link" and not options.no_peers:
            contestants |= peers(Ansible(pathlib.Path(folder), hosts))
        runs = report.in_turn(options.rounds, contestants)
    spreads = {name: [run["spread_ms"] for run in taken] for name, taken in runs.items()}
    ratios = {name: report.ratio(spreads[name], spreads["muster"]) for name in spreads if name.startswith("ansible")}
    figures = {name: {key: report.spread([run[key] for run in taken]) for key in taken[0]}
               for name, taken in runs.items()}
    show(driver, hosts, figures, ratios)
    return {"driver": driver, "hosts": hosts, "runs": figures, "ratios": ratios}


def peers(ansible):
    words = "src={target} dest={{{{ link }}}} state=link force=yes"
    return {
        "ansible": lambda: ansible.flip("ansible.builtin.file", words),
        "ansible, raw": lambda: ansible.flip("ansible.builtin.raw", "ln -sfn {target} {{{{ link }}}}"),
    }


def show(driver, hosts, figures, ratios):
    print(f"{hosts} hosts, driver {driver}\n")
    rows = []
    for name, figure in figures.items():
        spreads = [f"{figure['spread_ms'][key]:.0f}" for key in ("median", "min", "max")]
        dark = [f"{figure[key]['median']:.0f}" if key in figure else "" for key in ("dark_ms", "dark_bound_ms")]
        tighter = [f"{ratios[name]['median']:.0f} x", f"{TARGET:.0f} x"] if name in ratios else ["", ""]
        rows.append([name, *spreads, *dark, f"{figure['seconds']['median']:.2f}", *tighter])
    report.table(["", "median spread ms", "min", "max", "dark window ms", "at most ms", "whole command s",
                  "muster is tighter", "target"], rows)


def muster_flip(fleet, driver, mode):
    links = fleet.links()
    served = [fleet_version(link) for link in links]
    if served == [None] * len(links):
        # There is no instant to flip at for hosts that serve nothing yet.
        fleet.muster("flip", "1")
        served = ["1"] * len(links)
    begun = time.perf_counter()
    ended = fleet.muster("flip", "1" if set(served) == {"2"} else "2", "--mode", mode)
    taken = time.perf_counter() - begun
    window = ended["dark_window"]
    # On the hosts' own clock, which all of them share here.
    sample = {"spread_ms": spread_ms(links) if driver == "link" else window["spread_ms"], "seconds": taken,
              "told_spread_ms": window["spread_ms"]}
    if mode == "fast":
        return sample
    return {**sample, "dark_bound_ms": window["bound_ms"], "dark_ms": window["measured_ms"]}


def fleet_version(link):
    """Which of the two releases a link points to; none before the first flip."""
    return (link / "lib/0").read_text()[0] if link.is_symlink() else None


class Ansible:
    """N links of its own, to two releases of its own."""

    def __init__(self, folder, hosts):
        self.folder, self.hosts = folder, hosts
        self.links = [folder / f"host-{number}" / "current" for number in range(hosts)]
        self.targets = [folder / "release-1", folder / "release-2"]
        for target in self.targets:
            target.mkdir()
        for link in self.links:
            link.parent.mkdir()
            link.symlink_to(self.targets[0])
        self.inventory = folder / "inventory"
        self.inventory.write_text("".join(f"host-{number} link={link}\n" for number, link in enumerate(self.links)))

    def flip(self, module, words):
        target = self.targets[self.links[0].readlink() == self.targets[0]]
        command = ["ansible", "all", "-i", self.inventory, "-c", "local", "-f", str(self.hosts),
                   "-e", f"ansible_remote_tmp={self.folder}/tmp", "-m", module, "-a", words.format(target=target)]
        environment = {**os.environ, "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_PYTHON_INTERPRETER": "auto_silent"}
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        taken = time.perf_counter() - begun
        if done.returncode != 0 or any(link.readlink() != target for link in self.links):
            raise SystemExit(f"ansible failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return {"spread_ms": spread_ms(self.links), "seconds": taken}


def spread_ms(links):
    changed = [link.lstat().st_ctime_ns for link in links]
    return max((max(changed) - min(changed)) / 1e6, TICK_MS)


if __name__ == "__main__":
    main()
