#!/usr/bin/env python3
"""One flip of a whole fleet, beside Ansible.

  bench/flip.py [--rounds 7] [--hosts 8 32 100]

  muster         `muster flip`, strict: a coordinator, and an agent and a guard for each host, all real
                 processes on this machine with mutual TLS, driver `link`
  ansible        `ansible -f N -m ansible.builtin.file` with `state=link`, local connection: what is usually
                 written
  ansible, raw   `ansible -f N -m ansible.builtin.raw` with `ln -sfn`, local connection: the least that Ansible
                 can do for a host

Every run takes all N links from one of two small releases to the other. The spread is taken from the links
themselves, for all sides alike: the change time of the last link less that of the first, and at least one tick of
the clock that the kernel takes such times from. In that time some hosts have the new release and others do not have
it. Muster also says how long nobody served (dark window): a strict
flip has no instant at which two releases are served, and this is its price. With Ansible the two releases are
served side by side for as long as the spread.

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
# The kernel takes a file's times from a clock that ticks; a shorter spread than one tick cannot be told from none.
CLOCK_REALTIME_COARSE = 5
TICK_MS = time.clock_getres(CLOCK_REALTIME_COARSE) * 1e3


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up")
    arguments.add_argument("--hosts", type=int, nargs="+", default=[8, 32, 100], help="sizes of the fleet")
    report.program_options(arguments)
    options = arguments.parse_args()

    machine = report.facts(ansible=report.first_line("ansible", "--version"))
    programs = report.programs(options)
    sizes = [size(programs, hosts, options.rounds) for hosts in options.hosts]
    report.save("flip", {"machine": machine, "target": TARGET, "sizes": sizes})


def size(programs, hosts, rounds):
    with Fleet(programs, hosts) as fleet, tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        for version in "1", "2":
            fleet.release(version)
        peer = Ansible(pathlib.Path(folder), hosts)
        runs = report.in_turn(rounds, {
            "muster": lambda: muster_flip(fleet),
            "ansible": lambda: peer.flip("ansible.builtin.file", "src={target} dest={{{{ link }}}} state=link force=yes"),
            "ansible, raw": lambda: peer.flip("ansible.builtin.raw", "ln -sfn {target} {{{{ link }}}}"),
        })
    spreads = {name: [run["spread_ms"] for run in taken] for name, taken in runs.items()}
    ratios = {name: report.ratio(spreads[name], spreads["muster"]) for name in spreads if name != "muster"}
    figures = {name: {key: report.spread([run[key] for run in taken]) for key in taken[0]}
               for name, taken in runs.items()}
    show(hosts, figures, ratios)
    return {"hosts": hosts, "runs": figures, "ratios": ratios}


def show(hosts, figures, ratios):
    print(f"{hosts} hosts\n")
    rows = []
    for name, figure in figures.items():
        links = [f"{figure['spread_ms'][key]:.0f}" for key in ("median", "min", "max")]
        dark = [f"{figure[key]['median']:.0f}" if key in figure else "" for key in ("dark_ms", "dark_bound_ms")]
        tighter = [f"{ratios[name]['median']:.0f} x", f"{TARGET:.0f} x"] if name in ratios else ["", ""]
        rows.append([name, *links, *dark, f"{figure['seconds']['median']:.2f}", *tighter])
    report.table(["", "median spread ms", "min", "max", "dark window ms", "at most ms", "whole command s",
                  "muster is tighter", "target"], rows)


def muster_flip(fleet):
    links = fleet.links()
    served = [fleet_version(link) for link in links]
    begun = time.perf_counter()
    ended = fleet.muster("flip", "1" if set(served) == {"2"} else "2")
    taken = time.perf_counter() - begun
    window = ended["dark_window"]
    sample = {"spread_ms": spread_ms(links), "seconds": taken, "dark_bound_ms": window["bound_ms"]}
    # Measured on the hosts' own clock, which all of them share here.
    return {**sample, "dark_ms": window["measured_ms"], "dark_spread_ms": window["spread_ms"]}


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
