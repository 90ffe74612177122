"""Serve many requests with one artifact: they join and leave while others run.

    python examples/many_requests.py ARTIFACT

ARTIFACT is a folder that `gptoss-export build` made. With `--max-batch 8`, up to eight requests run at a time.
"""

import asyncio
import sys

import gptoss_export
from gptoss_export import Engine, SamplingParams


async def client(engine: Engine, number: int) -> None:
    """Ask, and read the tokens as they come."""
    request = engine.submit([72, 101, 108, 108, 111, number], 8, SamplingParams(temperature=0.8, seed=number))
    tokens = [token.id async for token in request]
    print(number, *tokens)


async def main(engine: Engine) -> None:
    """Six clients beside each other."""
    await asyncio.gather(*(client(engine, number) for number in range(6)))


with Engine(gptoss_export.load(sys.argv[1])) as engine:
    asyncio.run(main(engine))
