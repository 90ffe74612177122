"""Build a checkpoint from Python and continue some tokens with it.

    python examples/build_and_run.py CHECKPOINT ARTIFACT
"""

import sys
from pathlib import Path

from gptoss_export.build import BuildOptions, build
from gptoss_export.progress import Steps
from gptoss_export.runtime import Runner, Sampling

checkpoint, artifact = map(Path, sys.argv[1:3])
if not artifact.exists():
    steps = Steps(lambda name, seconds: seconds is not None and print(f"{seconds:7.1f} s  {name}"))
    build(checkpoint, artifact, BuildOptions("aoti", device="cpu", max_context=512, prefill_chunks=(64,)), steps)

runner = Runner.load(artifact)
greedy = runner.generate([72, 101, 108, 108, 111], max_new_tokens=16)
sampled = runner.generate([72, 101, 108, 108, 111], max_new_tokens=16, sampling=Sampling(0.8, top_p=0.95, seed=1))
print("greedy ", greedy.tokens, greedy.finish)
print("sampled", sampled.tokens, sampled.finish)
