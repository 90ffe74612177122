"""May this machine be fuzzed? Root outside of a container may not: a wrong write would hit the whole machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OVERRIDE = "GPTOSS_EXPORT_FUZZ_AS_ROOT"
_RUNTIMES = ("docker", "kubepods", "containerd", "libpod", "lxc", "garden", "crio", "nspawn")


def refusal(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str | None:
    """Why fuzzing may not run here, None where it may.

    root  the folder that the signs of a container are read from
    """
    if os.geteuid() != 0 or environ.get(OVERRIDE) == "1" or container(environ, root) is not None:
        return None
    return (
        "fuzzing runs commands with hostile arguments, and this is root outside of a container; run it as another "
        f"user, in a container, or set {OVERRIDE}=1 on a machine that is thrown away afterwards"
    )


def container(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str | None:
    """The sign that says that this process is in a container, None where there is none.

    No sign is proof against somebody who wants to deceive. All are set by the runtime and not by what runs in it.
    """
    for name in (".dockerenv", "run/.containerenv", "run/systemd/container", "run/host/container-manager"):
        if (root / name).is_file():
            return f"/{name}"
    if environ.get("container"):  # podman, systemd-nspawn and LXC set it
        return "the variable container"
    if "KUBERNETES_SERVICE_HOST" in environ and (root / "var/run/secrets/kubernetes.io").is_dir():
        return "Kubernetes"
    for name in ("proc/1/cgroup", "proc/self/cgroup"):
        if any(runtime in _text(root / name) for runtime in _RUNTIMES):
            return f"/{name}"
    uids = _text(root / "proc/self/uid_map").split()
    if uids and uids != ["0", "0", "4294967295"]:
        return "/proc/self/uid_map"  # root of a user namespace is somebody else outside
    return _detect_virt() if root == Path("/") else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _detect_virt() -> str | None:
    command = shutil.which("systemd-detect-virt")
    if command is None:
        return None
    done = subprocess.run([command, "--container"], capture_output=True, text=True, check=False)
    return "systemd-detect-virt" if done.returncode == 0 and done.stdout.strip() not in ("", "none") else None


if __name__ == "__main__":
    if why := refusal():
        sys.exit(why)
