#!/usr/bin/env python3
"""Measuring trees and one large file, beside OpenSSL and sha256sum.

  bench/measure.py [--rounds 7] [TREE...]

Trees, with the page cache warm and on all cores:
  muster     one process that reads a manifest, measures the tree as an agent does, and compares; it checks
             types, modes, sizes and symlink targets as well, and finds what is not in the manifest
  openssl    find -print0 | xargs -0 -P$(nproc) -n 200 openssl dgst -sha256
  sha256sum  find -print0 | xargs -0 sha256sum, one process after the other where the list is too long for one

The peers only hash: they compare nothing with anything. Entries that no release may have (set-group-id bits,
file capabilities) are left out on both sides, and both must find the same number of files and bytes.

One file of 512 MiB, with the page cache warm:
  muster     the same process with one hashing thread, from its start to its end, reading included
  openssl    openssl speed -evp sha256 -bytes 16384: hashing alone, the same 16 KiB again and again
  dgst       openssl dgst -sha256 on the file

What it does not compare: cold disks, and digests other than SHA-256.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import tempfile

import report

TREES = ["/usr/share", "/usr/lib/x86_64-linux-gnu"]
FILE_BYTES = 512 << 20
FILE_PART_BYTES = 1 << 20
SPEED_BLOCK_BYTES = 16384
TARGETS = {"openssl": 1.3, "sha256sum": 3.0, "large file": 0.85}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up")
    arguments.add_argument("trees", nargs="*", default=TREES, metavar="TREE", help="what to measure")
    options = arguments.parse_args()

    machine = report.facts(
        openssl=report.first_line("openssl", "version"),
        sha256sum=report.first_line("sha256sum", "--version"),
        find=report.first_line("find", "--version"),
    )
    program = report.build("muster-bench") / "muster-bench"
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        folder = pathlib.Path(folder)
        trees = [tree(program, path, folder, options.rounds) for path in options.trees]
        large = large_file(program, folder, options.rounds)
    report.save("measure", {"machine": machine, "targets": TARGETS, "trees": trees, "large_file": large})


def tree(program, path, folder, rounds):
    report.note(f"{path}: preparing")
    manifest = folder / "manifest"
    prepared = json.loads(subprocess.check_output([program, "prepare", path, manifest]))
    refused = [os.path.join(path, name) for name in prepared["refused"]]
    find = shlex.join(["find", path, *(word for name in refused for word in ("-path", name, "-prune", "-o")),
                       "-type", "f"])
    sizes = [int(size) for size in subprocess.check_output(["sh", "-c", f"{find} -printf '%s\\n'"]).split()]
    found = {"files": len(sizes), "bytes": sum(sizes)}
    if found != {name: prepared[name] for name in found}:
        raise SystemExit(f"{path}: not the same files on both sides: {prepared} and {found}")

    shell = {
        "openssl": f"{find} -print0 | xargs -0 -P$(nproc) -n 200 openssl dgst -sha256",
        "sha256sum": f"{find} -print0 | xargs -0 sha256sum",
    }
    contestants = {"muster": lambda: report.seconds([program, "measure", path, manifest])}
    for name, line in shell.items():
        contestants[name] = lambda line=line: report.seconds(["sh", "-c", line])
    samples = report.in_turn(rounds, contestants)
    ratios = {name: report.ratio(samples[name], samples["muster"]) for name in shell}

    print(f"{path}: {found['files']} files, {found['bytes'] / 1e6:.0f} MB, {len(refused)} entries left out\n")
    rows = []
    for name, taken in samples.items():
        taken = report.spread(taken)
        row = [name, *(f"{taken[key]:.3f}" for key in ("median", "min", "max"))]
        row.append(f"{found['bytes'] / taken['median'] / 1e6:.0f}")
        row += [f"{ratios[name]['median']:.2f}", f"{TARGETS[name]:.2f}"] if name in ratios else ["", ""]
        rows.append(row)
    report.table(["", "median s", "min s", "max s", "MB/s", "muster is faster by", "target"], rows)
    return {"tree": path, **found, "refused": refused, "commands": shell, "ratios": ratios,
            "seconds": {name: report.spread(taken) for name, taken in samples.items()}}


def large_file(program, folder, rounds):
    report.note("a file of 512 MiB: preparing")
    place = folder / "large"
    place.mkdir()
    with open(place / "file", "wb") as file:
        for _ in range(FILE_BYTES // FILE_PART_BYTES):
            file.write(os.urandom(FILE_PART_BYTES))
        os.fsync(file.fileno())
    manifest = folder / "large.manifest"
    subprocess.run([program, "prepare", place, manifest], stdout=subprocess.DEVNULL, check=True)

    samples = report.in_turn(rounds, {
        "muster": lambda: FILE_BYTES / report.seconds([program, "measure", place, manifest, "--jobs", "1"]),
        "openssl speed": openssl_speed,
        "openssl dgst": lambda: FILE_BYTES / report.seconds(["openssl", "dgst", "-sha256", place / "file"]),
    })
    of_speed = report.ratio(samples["muster"], samples["openssl speed"])
    print("one file of 512 MiB, one hashing thread\n")
    rows = []
    for name, rates in samples.items():
        rates = report.spread(rates)
        share = [f"{of_speed['median']:.2f}", f"{TARGETS['large file']:.2f}"] if name == "muster" else ["", ""]
        rows.append([name, *(f"{rates[key] / 1e6:.0f}" for key in ("median", "min", "max")), *share])
    report.table(["", "median MB/s", "min MB/s", "max MB/s", "of openssl speed", "target"], rows)
    return {"bytes": FILE_BYTES, "of_openssl_speed": of_speed,
            "bytes_per_second": {name: report.spread(rates) for name, rates in samples.items()}}


def openssl_speed():
    """Bytes a second, on the wall clock as everything else here."""
    output = subprocess.run(
        ["openssl", "speed", "-mr", "-elapsed", "-seconds", "1", "-bytes", str(SPEED_BLOCK_BYTES), "-evp", "sha256"],
        capture_output=True, text=True, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("+F:"))
    return float(line.rsplit(":", 1)[1])


if __name__ == "__main__":
    main()
