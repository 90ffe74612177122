"""Print tokens as they are generated.

    python examples/stream.py ARTIFACT TEXT
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer

from gptoss_export.runtime import Runner, Sampling

artifact, text = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
runner = Runner.load(artifact)
for token in runner.stream(tokenizer.encode(text).ids, max_new_tokens=32, sampling=Sampling(0.8, seed=1)):
    print(tokenizer.decode([token.id]), f"({token.logprob:.2f})", flush=True)
