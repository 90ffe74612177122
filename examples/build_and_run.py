"""Build a checkpoint, check the artifact, and continue some tokens with it.

    python examples/build_and_run.py CHECKPOINT ARTIFACT

The artifact is built where the folder ARTIFACT does not exist. Checking it needs transformers:
pip install 'gptoss-export[verify]'. A checkpoint to try with, which is quickly built:
gptoss-export make-checkpoint CHECKPOINT --preset tiny
"""

import sys
from pathlib import Path

import gptoss_export

checkpoint, artifact = Path(sys.argv[1]), Path(sys.argv[2])
if not artifact.exists():
    gptoss_export.build(checkpoint, artifact, gptoss_export.BuildOptions(max_context=512, prefill_chunks=(64,)))

report = gptoss_export.verify(artifact, checkpoint, lengths=[16])
print("verified" if report.passed else "differs from transformers")

runner = gptoss_export.load(artifact)
prompt = [72, 101, 108, 108, 111]
greedy = runner.generate(prompt, max_new_tokens=16)
print("greedy", *greedy.tokens)

sampling = gptoss_export.SamplingParams(temperature=0.8, top_p=0.95, seed=1)
sampled = runner.generate(prompt, max_new_tokens=16, sampling=sampling)
print("sampled", *sampled.tokens)
