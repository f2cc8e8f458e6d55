"""Two machines on one: each has a network, a host name, and a disk of its own at the same path, by
namespaces of Linux. They are gone with the processes in them."""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Started, environment

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29400"  # the same each time: the networks are new ones


class Machine:
    """Args:
    place: 0 or 1.
    disk: the folder that each machine has for itself.
    """

    def __init__(self, place: int, disk: Path) -> None:
        self.place, self.disk = place, disk
        names = disk.parent / "hosts"
        lines = [f"{address} machine{n}" for n, address in enumerate(ADDRESSES)]
        names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        steps = [
            "mount --make-rprivate /",
            f"mount -t tmpfs none '{disk}'",
            f"mount --bind '{names}' /etc/hosts",
            f"hostname machine{place}",
            "ip link set lo up",
            "echo ready",
            "exec cat",  # ends with this process, which holds the other end of its input
        ]
        command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", " && ".join(steps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._holder = subprocess.Popen(command, text=True, **pipes)
        if self._holder.stdout.readline() != "ready\n":
            pytest.skip(f"no namespaces for two machines: {self._holder.communicate()[1].strip()}")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def call(self, *words: str) -> None:
        """Run a command in its network."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", *words], check=True)

    def link(self, state: str) -> None:
        """Args:
        state: "up" or "down", of its end of the cable.
        """
        self.call("ip", "link", "set", "eth0", state)

    def seen(self, path: str) -> Path:
        """A path of its disk, from outside."""
        return Path(f"/proc/{self.pid}/root{self.disk}/{path}")

    def start(
        self, *arguments: str, first: Callable[[], None] | None = None, **more: str
    ) -> Started:
        """Rank 0 or 1 of a command, without torchrun.

        Args:
            first: called in the process before the command.
            more: variables of its environment.
        """
        address = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": "eth0"}
        ranks = {"WORLD_SIZE": "2", "RANK": str(self.place), "LOCAL_RANK": "0"}
        prepare = partial(_enter, self.pid, str(self.disk), first)
        return Started(*arguments, cwd=self.disk, prepare=prepare, **{**address, **ranks, **more})

    def torchrun(self, *arguments: str, elastic: bool = True) -> subprocess.Popen:
        """The agent of this machine, and through it one process of a command.

        Args:
            elastic: the agents meet and watch each other (`--rdzv-backend c10d`). Else each is
                told its number.
        """
        place = ["--node-rank", str(self.place), "--master-addr", ADDRESSES[0]]
        place += ["--master-port", PORT]
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"]
        options = ["--nnodes", "2", "--nproc-per-node", "1", *(meet if elastic else place)]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "selfsight"]
        inside = ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", f"--wdns={self.disk}"]
        return subprocess.Popen(
            [*inside, *command, *arguments],
            env={**environment(), "GLOO_SOCKET_IFNAME": "eth0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def remove(self) -> None:
        self._holder.stdin.close()
        self._holder.wait()


def _enter(pid: int, disk: str, first: Callable[[], None] | None) -> None:
    """Let this process be one of the machine that a process is in, in the folder of its disk; then
    call `first`."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("net", "uts", "mnt"):
        with open(f"/proc/{pid}/ns/{name}") as space:
            if libc.setns(space.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"cannot enter {name} of process {pid}")
    os.chdir(disk)  # another file system has taken its place
    if first is not None:
        first()


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[list[Machine]]:
    """Two machines and a cable between them."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("two machines need the namespaces of Linux, and root to make them")
    disk = folder / "disk"
    disk.mkdir()
    with contextlib.ExitStack() as stack:
        machines = []
        for place in range(2):
            machines.append(Machine(place, disk))
            stack.callback(machines[-1].remove)
        ends = [f"netns {machine.pid}".split() for machine in machines]
        cable = ["ip", "link", "add", "name", "eth0", *ends[0]]
        cable += ["type", "veth", "peer", "name", "eth0", *ends[1]]
        made = subprocess.run(cable, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no cable between two machines: {made.stderr.strip()}")
        for machine, address in zip(machines, ADDRESSES, strict=True):
            machine.call("ip", "address", "add", f"{address}/24", "dev", "eth0")
            machine.link("up")
        yield machines
