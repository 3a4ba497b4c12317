"""A local fleet of real processes, as `muster dev up` makes it."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import report

FLEET = "demo"
FILES = 20
FILE_BYTES = 4096
FENCES_S = 150


class Fleet:
    """Running while the context is open; its folder is removed afterwards."""

    def __init__(self, programs, hosts, environment=None, supervise=(), lease=None):
        """With `supervise` the guards run this command; otherwise there is only the link."""
        self.muster_program = programs / "muster"
        self.hosts = hosts
        self.options = ["--lease", lease] if lease else []
        if supervise:
            self.options += ["--driver", "supervise", "--command", *supervise]
        self.environment = {**os.environ, **(environment or {})}
        # A socket's path has room for 107 bytes.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))

    def __enter__(self):
        report.note(f"{self.hosts} hosts: starting")
        try:
            self.up = self.muster("dev", "up", "--dir", self.folder / "fleet", "--hosts", self.hosts,
                                  "--fleet", FLEET, "--detach", *self.options)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.run("dev", "down", "--dir", self.folder / "fleet")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words):
        command = [self.muster_program, "--context", self.folder / "fleet/operator/context.toml",
                   "--output", "json", "--no-progress", *map(str, words)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    def muster(self, *words):
        """Runs one command that has to succeed, and returns what it says."""
        done = self.run(*words)
        if done.returncode != 0:
            raise SystemExit(f"muster {' '.join(map(str, words))}: exit code {done.returncode}\n"
                             f"{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def release(self, version, programs=()):
        """Pushes and deploys a release of 20 files, and of these programs, each a name and its text."""
        tree = self.folder / f"tree-{version}"
        for number in range(FILES):
            file = tree / f"lib/{number}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{version} {number}\n".encode().ljust(FILE_BYTES, b"."))
        for name, text in programs:
            file = tree / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            file.chmod(0o755)
        self.muster("release", "push", tree, "--version", version)
        self.deploy(version)

    def deploy(self, version):
        """A fence that was tried while a hundred guards began at once was slow; each host tries again by itself."""
        deadline = time.monotonic() + FENCES_S
        while self.run("deploy", version).returncode != 0 and time.monotonic() < deadline:
            time.sleep(1)
        self.muster("deploy", version)

    def links(self):
        return [pathlib.Path(host["state"]) / "fleets" / FLEET / "current" for host in self.up["hosts"]]


class HungDisk:
    """Has a host's guard hang when it writes its next deadline: opening a pipe to which nobody listens waits for ever, as a
    write to a broken disk does. Its fleet can then not become armed, and the other hosts hold their leases meanwhile."""

    def __init__(self, host):
        self.pipe = host / "fleets" / FLEET / "lease.next"

    def __enter__(self):
        self.pipe.unlink(missing_ok=True)
        os.mkfifo(self.pipe)
        return self

    def __exit__(self, *_):
        # Whoever hangs goes on, and fails.
        pipe = os.open(self.pipe, os.O_RDWR)
        self.pipe.unlink()
        time.sleep(0.1)
        os.close(pipe)
