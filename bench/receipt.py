#!/usr/bin/env python3
"""Verifying a receipt, beside securesystemslib and beside nothing but the signatures.

  bench/receipt.py [--hosts 1000] [--rounds 9] --python VENV/bin/python

All on one core (taskset), each a process from its start to its end:
  muster            `muster receipt verify`: N + 3 signatures, the strict reading of N + 3 documents, one roster, one challenge,
                    N closing secrets against their commitments, and a report
  securesystemslib  its DSSE `Envelope.verify` of the same N + 3 envelopes with the same keys, and nothing of the rest;
                    the import of the library is taken off
  openssl           no process: (N + 3) / the rate of `openssl speed ed25519`, which verifies one short message again
                    and again. Nobody who verifies each signature is faster with that library

The Python needs securesystemslib[crypto] of the version in crates/trust/vectors/requirements.txt; .ci/run makes one in
target/vectors-venv.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import report

TARGET_SECONDS = 1.0
CORE = ["taskset", "--cpu-list", "0"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.program_options(arguments)
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=9, help="rounds that count, after one that warms up")
    arguments.add_argument("--python", default=report.ROOT / "target/vectors-venv/bin/python", type=pathlib.Path)
    arguments.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.peer:
        return peer(*options.peer)

    programs = report.programs(options)
    maker = programs if options.programs else report.build("muster-bench")
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        subprocess.run([maker / "muster-bench", "make-receipt", folder, "--hosts", str(options.hosts)], check=True)
        receipt, root = f"{folder}/flip.receipt", f"{folder}/root.json"
        size = pathlib.Path(receipt).stat().st_size
        verify = [*CORE, programs / "muster", "receipt", "verify", receipt, "--root", root]
        ask = [*CORE, options.python, __file__, "--peer", receipt, root]
        samples = report.in_turn(options.rounds, {
            "muster": lambda: report.seconds(verify),
            "securesystemslib": lambda: float(subprocess.check_output(ask)),
            "openssl": lambda: (options.hosts + 3) / openssl_rate(),
        })
    ratios = {name: report.ratio(samples[name], samples["muster"]) for name in samples if name != "muster"}
    rows = []
    for name, taken in samples.items():
        taken = report.spread(taken)
        ratio = f"{ratios[name]['median']:.2f}" if name in ratios else ""
        rows.append([name, *(f"{taken[key] * 1000:.0f}" for key in ("median", "min", "max")), ratio])
    report.table(["", "median ms", "min ms", "max ms", "muster is faster by"], rows)
    version = subprocess.check_output([options.python, "-c", "import securesystemslib as s; print(s.__version__)"], text=True)
    machine = report.facts(openssl=report.first_line("openssl", "version"), securesystemslib=version.strip())
    report.save("receipt", {
        "machine": machine, "hosts": options.hosts, "bytes": size, "target_seconds": TARGET_SECONDS, "ratios": ratios,
        "seconds": {name: report.spread(taken) for name, taken in samples.items()},
    })


def openssl_rate():
    said = subprocess.run([*CORE, "openssl", "speed", "-seconds", "1", "ed25519"], capture_output=True, text=True, check=True)
    return float(re.findall(r"([0-9.]+)\s*$", said.stdout.strip())[0])


def peer(receipt, root):
    """In a process of its own: how long the other library takes for all envelopes, without its import."""
    import base64
    import time

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    def keys_of(text):
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix("ed25519:"))))

    def payload(envelope):
        return json.loads(base64.b64decode(envelope["payload"]))

    begun = time.perf_counter()
    with open(receipt) as file:
        flip = json.load(file)
    with open(root) as file:
        roles = payload(json.load(file))["roles"]
    wanted = [(flip["order"], "operator"), (flip["roster"], "operator"), (flip["release"], "release")]
    wanted = [(envelope, roles[role]["keys"][0]) for envelope, role in wanted]
    hosts = payload(flip["roster"])["hosts"]
    wanted += [(each, host["attestation_key"]) for each, host in zip(flip["attestations"], hosts, strict=True)]
    for envelope, key in wanted:
        key = keys_of(key)
        # It looks for signatures by their key id, and calls the same key by another one than we do.
        envelope["signatures"][0]["keyid"] = key.keyid
        Envelope.from_dict(envelope).verify([key], 1)
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
