"""The sums of ranks on GPUs of one host: `pytest -m gpu` with two GPUs or more.

Each rank is a process, which is this file run as a script. Rank 0 prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gptoss_export.model.places import Box
from gptoss_export.model.ranks import GROUP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA GPUs here"),
]
CHAIN, REPLAYS = 96, 50
SHAPES = (1, 2880), (2, 2880), (64, 2880), (7, 333), (1, 1), (89, 2880)
THROUGH = "GPUs", "host"


@pytest.fixture(scope="module", params=THROUGH)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ran("sums", request.param)


def ran(what: str, through: str) -> dict[str, Any]:
    """What rank 0 says of all ranks' work."""
    ranks = torch.cuda.device_count()
    command = [sys.executable, __file__, what, through]
    first = subprocess.Popen([*command, "0", str(ranks)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    port, file = first.stdout.readline().split()
    others = [subprocess.Popen([*command, str(rank), str(ranks), port, file]) for rank in range(1, ranks)]
    output, _ = first.communicate(timeout=200)
    assert [process.wait(60) for process in (first, *others)] == [0] * ranks
    return json.loads(output)


def test_sums_are_those_of_one_rank_after_the_other(found: dict[str, Any]) -> None:
    assert set(found["equal"].values()) == {True} and len(found["equal"]) == 2 * len(SHAPES)


def test_replays_of_a_graph_have_the_same_bits(found: dict[str, Any]) -> None:
    assert found["replays are equal"]


def test_ranks_have_the_same_bits(found: dict[str, Any]) -> None:
    assert found["ranks are equal"]


def test_a_rank_that_is_not_there_is_missed() -> None:
    """The others say so after their patience, do not wait again, and their process can go on."""
    found = ran("missed", "GPUs")
    assert found["missed before"] is False and found["missed"] is True
    assert 6.5 < found["seconds"] < 9 and found["seconds of the next"] < 0.1
    assert found["still computes"]


def sums(group: Any, rank: int, ranks: int) -> dict[str, Any]:
    """Sums of all shapes, compared with those of everybody's numbers, which are known from their seeds."""
    summed = summing(group, ranks)
    equal = {}
    for shape in SHAPES:
        parts = [numbers(shape, seed) for seed in range(ranks)]
        residual = numbers(shape, 99)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        equal[f"{shape}"] = torch.equal(summed(parts[rank], None), total)
        equal[f"{shape} residual"] = torch.equal(summed(parts[rank], residual), residual + total)
    same, times = [], {}
    for shape in SHAPES[:3]:
        graph, given, result = captured(lambda x: summed(x / 3, None), numbers(shape, rank))
        expected: dict[int, torch.Tensor] = {}
        for replay in range(REPLAYS):
            kind = replay % 2
            given.copy_(numbers(shape, rank + 10 * kind))
            graph.replay()
            same.append(torch.equal(expected.setdefault(kind, result.clone()), result))
        times[f"{shape}"] = microseconds(graph)
    nccl = torch.ops._c10d_functional
    for shape in (*SHAPES[:3], (2048, 2880)):
        for dtype in torch.float32, torch.bfloat16:
            graph, _, _ = captured(
                lambda x: nccl.wait_tensor(nccl.all_reduce(x / 3, "sum", GROUP)),
                numbers(shape, rank).to(dtype),
            )
            times[f"NCCL {shape} {dtype}"] = microseconds(graph)
    graph, _, _ = captured(lambda x: x / 3, numbers(SHAPES[0], rank))
    times["the division alone"] = microseconds(graph)
    result = summed(numbers((2, 2880), rank), None)
    others = nccl.wait_tensor(nccl.all_gather_into_tensor(result, ranks, GROUP)).view(ranks, *result.shape)
    ranks_equal = all(torch.equal(other, result) for other in others)
    return {"equal": equal, "replays are equal": all(same), "ranks are equal": ranks_equal, "microseconds": times}


def missed(group: Any, rank: int, ranks: int) -> dict[str, Any]:
    """The last rank leaves the second sum out."""
    summed, x = summing(group, ranks), numbers((2, 2880), rank)
    summed(x, None)
    torch.cuda.synchronize()
    before = group.missed()
    if rank == ranks - 1:
        time.sleep(12)
        return {}
    seconds = []
    for _ in range(2):
        begin = time.monotonic()
        summed(x, None)
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - begin)
    time.sleep(3)
    return {
        "missed before": before,
        "missed": group.missed(),
        "seconds": seconds[0],
        "seconds of the next": seconds[1],
        "still computes": bool((x + 1 > x).all()),
    }


def summing(group: Any, ranks: int) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """gptoss::sum_ranks by its kernel."""
    from gptoss_export.kernels.kernel import ConfigChooser
    from gptoss_export.kernels.registry import kernels
    from gptoss_export.model.ops import OPS

    major, minor = torch.cuda.get_device_capability()
    bound = kernels()["sum_ranks"].bind(OPS["sum_ranks"], ConfigChooser(f"sm_{major}{minor}"))
    places = torch.tensor(group.places, device="cuda")
    return lambda x, residual: bound(x=x, residual=residual, places=places, ranks=ranks, box=Box.IN_TURN)


def numbers(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def captured(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A graph of CHAIN calls, each with the result of the one before; its input and its result."""
    from gptoss_export.runtime.with_torch.capture import capture

    def chain() -> torch.Tensor:
        found = x
        for _ in range(CHAIN):
            found = work(found)
        return found

    chain()
    torch.cuda.synchronize()
    graph, result = capture(chain, torch.device("cuda", torch.cuda.current_device()))
    return graph.graph, x, result


def microseconds(graph: Any) -> float:
    """Of one call of the chain."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        graph.replay()
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return round(begin.elapsed_time(end) * 1e3 / REPLAYS / CHAIN, 2)


def main(what: str, through: str, rank: int, ranks: int, port: int | None = None, file: str = "") -> None:
    from gptoss_export.ranks.exchange import shared_file
    from gptoss_export.ranks.torch_group import TorchGroup

    torch.cuda.set_device(rank)
    descriptor = None
    if through == "host" and rank == 0:
        descriptor = shared_file(ranks)
        file = f"/proc/{os.getpid()}/fd/{descriptor}"
    elif through == "host":
        descriptor = os.open(file, os.O_RDWR)
    group = TorchGroup(rank, ranks, "cuda", port, descriptor)
    if rank == 0:
        print(group.port, file or "-", flush=True)
    group.join()
    with torch.inference_mode():
        found = {"sums": sums, "missed": missed}[what](group, rank, ranks)
        torch.cuda.synchronize()
    if rank == 0:
        print(json.dumps(found))
    if what == "missed":
        sys.stdout.flush()
        os._exit(0)  # the communicator of NCCL would wait for the others
    group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), *sys.argv[6:])
