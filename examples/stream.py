"""Print tokens as they are generated: id, log probability, text.

    python examples/stream.py ARTIFACT TEXT

ARTIFACT is a folder that `gptoss-export build` made of a checkpoint with a tokenizer.json. It continues TEXT.
Needs tokenizers: pip install 'gptoss-export[text]'
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer

import gptoss_export

artifact, text = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
tokenizer.no_truncation()  # the file may store one
tokenizer.no_padding()
runner = gptoss_export.load(artifact)
sampling = gptoss_export.SamplingParams(temperature=0.8, seed=1)
for token in runner.stream(tokenizer.encode(text).ids, max_new_tokens=32, sampling=sampling):
    print(f"{token.id:6}  {token.logprob:9.4f}  {tokenizer.decode([token.id])!r}", flush=True)
