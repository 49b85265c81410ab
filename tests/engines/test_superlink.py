"""Runs that ``flwr run`` starts on a SuperLink with two SuperNodes give the bits of a run here.

Every node has its own folder for Flower, as every device has: two nodes that install the app into
one folder at the same time get in each other's way.
"""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.engines.certificates import write_authority, write_node_key
from tests.engines.methods import digest_here, overrides_of
from tests.engines.processes import BIN, PATIENCE_S, Processes, free_ports, wait_until

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
NO_TESTS = "evaluation_participation=0"  # every message to a node starts a process there


class Link:
    """A SuperLink of the test's own."""

    def __init__(self, processes, *options, scheme):
        self.processes = processes
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.home = processes.folder / "user"
        self.home.mkdir()
        self.process = processes.start(
            "link", BIN / "flower-superlink", "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", self.port, *options,
        )  # fmt: skip
        wait_until(self._listens, f"{scheme}://{self.address}", self.process)
        trust = "insecure = true"
        if scheme == "https":
            trust = f'root-certificates = "{processes.folder / "ca.crt"}"'
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{self.address}"\n{trust}\n'
        )

    def node(self, name, number, *options):
        """Start a SuperNode."""
        (port,) = free_ports(1)
        return self.processes.start(
            name, BIN / "flower-supernode", "--superlink", self.address, "--port", port,
            "--node-config", f"partition-id={number}", *options,
        )  # fmt: skip

    def flwr(self, *words, cwd):
        """Run a command of Flower's."""
        code, output = self.processes.run(BIN / "flwr", *words, cwd=cwd, FLWR_HOME=self.home)
        assert code == 0, f"{output}\n{self.process.log.read_text()}"
        return output

    def run(self, checkout, *overrides):
        """Run the app to its end; its log and the folder that the log names."""
        config = f"overrides='{' '.join(overrides)}'"
        log = self.flwr("run", ".", "lab", "--stream", "--run-config", config, cwd=checkout)
        found = re.search(r"results go to (\S+)", log)
        assert found, log
        return log, Path(found.group(1))

    def _listens(self):
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A clean checkout of what is here."""
    folder = tmp_path_factory.mktemp("checkout") / "fedsim"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("fedsim", "clients", "strategies", "scenarios", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "checkout")
    return folder


def git(folder, *words):
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def processes(tmp_path):
    # nodes look for tasks ten times a second instead of once
    with Processes(tmp_path, FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.1") as started:
        yield started


def test_insecure(processes, checkout):
    link = Link(processes, "--insecure", scheme="http")
    for number in range(2):
        link.node(f"node{number}", number, "--insecure")
    for method in ("fedavg", "fedpub"):
        log, folder = link.run(checkout, *overrides_of(method, NO_TESTS), "progress=true")
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["digest"] == digest_here(method, NO_TESTS)
        assert summary["rejected_updates"] == 0
        assert folder.is_relative_to(processes.folder / "link" / "runs")
        assert "test accuracy" in log  # the table that ends a run
    assert "uv sync" not in link.process.log.read_text()
    assert git(checkout, "status", "--porcelain") == ""


def test_tls_and_authentication(processes, checkout):
    write_authority(processes.folder)
    link = Link(
        processes, "--enable-supernode-auth",
        "--ssl-ca-certfile", processes.folder / "ca.crt",
        "--ssl-certfile", processes.folder / "server.crt",
        "--ssl-keyfile", processes.folder / "server.key",
        scheme="https",
    )  # fmt: skip
    secure = ["--root-certificates", processes.folder / "ca.crt"]
    for number in range(2):
        key = write_node_key(processes.folder, f"device{number}")
        link.flwr("supernode", "register", f"{key}.pub", "lab", cwd=processes.folder)
        link.node(f"node{number}", number, *secure, "--auth-supernode-private-key", key)
    unknown = write_node_key(processes.folder, "unregistered")
    strangers = [
        link.node("stranger", 0, *secure, "--auth-supernode-private-key", unknown),
        link.node("keyless", 0, *secure),
    ]
    for method in ("reconnaissance", "dkvb"):
        _, folder = link.run(checkout, *overrides_of(method, NO_TESTS))
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["digest"] == digest_here(method, NO_TESTS)
        assert summary["rejected_updates"] == 0
    for stranger in strangers:
        assert stranger.wait(PATIENCE_S) != 0
        assert "Failed to initialize the connection to the SuperLink" in stranger.log.read_text()
    with pytest.raises((urllib.error.URLError, OSError)):  # and nobody is served without TLS
        urllib.request.urlopen(f"http://{link.address}/health", timeout=5)
