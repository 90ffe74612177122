"""The sizes that an artifact is asked for: their defaults, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any

from .artifact.programs import Sizes
from .model.adapter_factors import LARGEST_RANK, MOST_ADAPTERS
from .model.config import ModelConfig
from .model.kv_cache import sequence_bytes
from .values import shown, whole_number

MOST_SEQUENCES = 2**12  # of --max-batch
MOST_CACHE_BYTES = 2**43  # more than any machine has
RANKS = (1, 2, 4, 8)  # of --tensor-parallel: what divides the heads of a gpt-oss


def resolve_sizes(
    max_batch: int,
    widths: tuple[int, ...] | None,
    max_context: int,
    chunks: tuple[int, ...] | None,
    widths_for: Callable[[int], tuple[int, ...]],
    default_chunks: tuple[int, ...],
) -> tuple[Sizes, list[str]]:
    """The sizes of an artifact, and what is wrong with them. Default chunks are shortened to the context.

    widths_for      the default widths of a largest batch
    default_chunks  the default prefill chunks
    """
    wanted = {
        "--max-batch": (max_batch,),
        "--widths": () if widths is None else listed(widths),
        "--max-context": (max_context,),
        "--prefill-chunk": listed(default_chunks if chunks is None else chunks),
    }
    problems = [
        f"{option} {shown(value)}: expected a whole number"
        for option, values in wanted.items()
        for value in values
        if whole_number(value) is None
    ]
    if problems:
        return Sizes((1,), 1, (1,)), problems
    numbers = {option: tuple(map(operator.index, values)) for option, values in wanted.items()}
    (max_batch,), given_widths, (max_context,), given = numbers.values()
    problems = [f"{option} {value}: expected 1 or more" for option in numbers for value in numbers[option] if value < 1]
    if chunks is not None and not given:
        problems.append("--prefill-chunk: found none, expected one or more")
    if max_batch > MOST_SEQUENCES:
        problems.append(f"--max-batch {max_batch}: expected at most {MOST_SEQUENCES}")
    if widths is not None and max(given_widths, default=0) != max_batch:
        found = ",".join(map(str, given_widths)) or "none"
        problems.append(f"--widths {found}: expected --max-batch ({max_batch}) as the largest")
    if chunks is not None and given and max(given) > max_context:
        problems.append(f"--prefill-chunk {max(given)}: expected at most --max-context ({max_context})")
    if problems:
        return Sizes((1,), 1, (1,)), problems
    used = given if chunks is not None else tuple(min(chunk, max_context) for chunk in given)
    used_widths = widths_for(max_batch) if widths is None else given_widths
    return Sizes(tuple(sorted(set(used_widths))), max_context, tuple(sorted(set(used)))), []


def with_ranks(sizes: Sizes, ranks: Any, by_expert: bool) -> tuple[Sizes, list[str]]:
    """The sizes for so many ranks, and what is wrong with these. Then the sizes are as they were."""
    count = whole_number(ranks)
    if count not in RANKS:
        return sizes, [f"--tensor-parallel {shown(ranks)}: expected {', '.join(map(str, RANKS[:-1]))} or {RANKS[-1]}"]
    if by_expert and count == 1:
        return sizes, ["--expert-parallel: expected --tensor-parallel with 2, 4 or 8 ranks, which divide the experts"]
    return dataclasses.replace(sizes, ranks=count, expert_parallel=by_expert), []


def with_adapters(sizes: Sizes, wanted_slots: Any, wanted_rank: Any, problem: str | None) -> tuple[Sizes, list[str]]:
    """The sizes with the adapter slots that are wanted, and what is wrong with these. Then the sizes are as they
    were.

    problem  why the target has none (`Compiler.adapter_problem`)
    """
    wanted = {"--adapter-slots": (wanted_slots, MOST_ADAPTERS), "--adapter-rank": (wanted_rank, LARGEST_RANK)}
    numbers = {option: whole_number(value) for option, (value, _) in wanted.items()}
    slots, rank = numbers.values()
    if slots == rank == 0:
        return sizes, []
    problems = [
        f"{option} {shown(value)}: expected 1 to {most}"
        for option, (value, most) in wanted.items()
        if (number := numbers[option]) is None or not 0 <= number <= most
    ]
    if not problems and 0 in (slots, rank):
        given, missing = wanted if rank == 0 else reversed(wanted)
        problems.append(f"{given} {slots or rank}: expected {missing} as well; give both, or neither")
    if sizes.ranks > 1:
        problems.append(
            f"--adapter-slots {shown(slots)}: found --tensor-parallel {sizes.ranks}, expected 1 rank; leave one out"
        )
    if problem is not None:
        problems.append(f"--adapter-slots {shown(slots)}: {problem}")
    if problems or slots is None or rank is None:
        return sizes, problems
    return dataclasses.replace(sizes, adapter_slots=slots, adapter_rank=rank), []


def context_problems(sizes: Sizes, config: ModelConfig) -> list[str]:
    """What is wrong with the context for a model."""
    limit = config.max_position_embeddings
    if sizes.max_context > limit:
        expected = f"expected at most {limit} (max_position_embeddings of config.json)"
        option = "--max-context" if sizes.training is None else "--train-tokens"
        return [f"{option} {sizes.max_context}: {expected}"]
    caches = sizes.max_batch * sequence_bytes(config, sizes.max_context, 2)  # two bytes a number, or four
    if caches > MOST_CACHE_BYTES:
        return [
            f"--max-batch {sizes.max_batch} with --max-context {sizes.max_context}: the keys and values take "
            f"{caches / 1e12:.0f} TB or more; expected at most {MOST_CACHE_BYTES / 1e12:.0f} TB"
        ]
    return []


def listed(values: Any) -> tuple[Any, ...]:
    """The values of an option that may be repeated; one that is no list counts as a list of it."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
