"""What the benchmarks share: building, taking times in turn, facts about the machine, tables and results."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def build(package, profile="release"):
    """Builds a package's programs and returns the folder they are in."""
    subprocess.run(["cargo", "build", "--quiet", "--profile", profile, "--package", package], cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / profile


def program_options(arguments):
    """Where the programs of a fleet come from."""
    arguments.add_argument("--profile", default="release", help="the Cargo profile to build them with")
    arguments.add_argument("--programs", type=pathlib.Path, metavar="FOLDER", help="use these, and build nothing")


def programs(options):
    return options.programs.resolve() if options.programs else build("muster", options.profile)


def in_turn(rounds, contestants):
    """Runs all contestants once in each round, every round beginning with the next one, after one round that
    only warms up. Contestants are functions that return one sample; the result has a list for each name."""
    names = list(contestants)
    samples = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sample = contestants[name]()
            if number > 0:
                samples[name].append(sample)
        note(f"round {number} of {rounds}")
    return samples


def seconds(command):
    """How long a command takes from its start to its end. Its output is thrown away, and failing is an error."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def spread(samples):
    """Median, smallest and largest."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def ratio(above, below):
    """The ratio within each round, so that what slows a whole round slows both sides of it."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def note(text):
    """Tells on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def first_line(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def facts(**versions):
    """What the figures depend on. The load is that before the first run: on a busy machine only ratios are worth
    anything."""
    cpu = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[0] if cpu else platform.machine(),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "niceness": os.nice(0),
        "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "versions": {"rustc": first_line("rustc", "--version"), "python": platform.python_version(), **versions},
    }


def table(header, rows):
    """Prints a table in Markdown, so that it can go into the README as it is."""
    cells = [header, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row):
        padded = [cell.ljust(width) if at == 0 else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(row, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    print("\n".join([line(header), "| " + " | ".join(rule) + " |", *map(line, cells[1:])]), flush=True)
    print(flush=True)


def save(name, result):
    """Writes `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"schema": f"muster.bench.{name}/1", **result}, indent=2) + "\n")
    note(f"written to {path}")
