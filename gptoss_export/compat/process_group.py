"""Process groups of torch under a name that compiled programs look up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

_OF_NCCL = {
    "NCCL_NVLS_ENABLE": "0",  # multicast, which does not work in every virtual machine
    "NCCL_PROTO": "^LL",  # for prompts: messages are large, and LL sends each number with a flag
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # torch would end the process of a member that waits for too long
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # and write to stderr when another member ends
}


@contextmanager
def group_to_compile(name: str, size: int) -> Iterator[None]:
    """A group is known by `name` while a graph is compiled: that of a runner which this process has loaded, or else one
    of `size` members, none of which is there. Inductor writes neither its size nor its members into the code.

    Name: torch._C._distributed_c10d._register_process_group. Without it: Inductor asks for the group of each collective
    and fails. Since: torch 2.2. It can go when a collective can be compiled without its group, or a group can be
    registered by a public function.
    """
    if is_registered(name):
        yield
        return
    group = distributed.ProcessGroup(distributed.HashStore(), 0, size)  # which the registry does not keep alive
    register(name, group)
    try:
        yield
    finally:
        unregister(name)
        del group


def gloo_group(store: distributed.Store, rank: int, size: int, timeout: timedelta) -> distributed.ProcessGroup:
    """A group that computes on CPUs of this host, without becoming the process's default one. Waits for all members.

    Names: ProcessGroupGloo and its _Options, ProcessGroup._register_backend. Without them: only
    `init_process_group` makes a group, and a process that trains has called it for its own. Since: torch 2.0. They can
    go when `new_group` works without a default group.
    """
    group = distributed.ProcessGroup(store, rank, size)
    gloo: Any = distributed.ProcessGroupGloo  # whose stubs lack some names
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = timeout
    backend = gloo(store, rank, size, options)
    group._register_backend(torch.device("cpu"), distributed.ProcessGroup.BackendType.GLOO, backend)
    return group


def nccl_group(store: distributed.Store, rank: int, size: int, timeout: timedelta) -> distributed.ProcessGroup:
    """The same on torch's current GPU of each member, which are connected at once: the first sum of a prompt does not
    wait for it. A member that waits for too long waits on: who made the group ends it (`ProcessGroup.abort`). Private
    names as `gloo_group`."""
    group = distributed.ProcessGroup(store, rank, size)
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _environment(_OF_NCCL):
        backend = distributed.ProcessGroupNCCL(store, rank, size, options)
        group._register_backend(torch.device("cuda"), distributed.ProcessGroup.BackendType.NCCL, backend)
        backend.eager_connect_single_device(torch.device("cuda", torch.cuda.current_device()))
    return group


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, as far as the user has not set them."""
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def register(name: Any, group: Any) -> None:
    """Let compiled programs find a group. Private names as `group_to_compile`."""
    torch._C._distributed_c10d._register_process_group(name, group)


def is_registered(name: Any) -> bool:
    """Whether the process has a group of this name. Private names as `group_to_compile`."""
    try:
        torch._C._distributed_c10d._resolve_process_group(name)
    except RuntimeError:
        return False
    return True


def unregister(name: Any) -> None:
    """Forget a group. Private names as `group_to_compile`."""
    torch._C._distributed_c10d._unregister_process_group(name)
