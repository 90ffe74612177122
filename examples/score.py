"""How likely a text is: the log probability of each of its tokens, and its perplexity.

    python examples/score.py ARTIFACT TEXT
"""

import math
import sys
from pathlib import Path

from tokenizers import Tokenizer

from gptoss_export.runtime import Runner

artifact, text = Path(sys.argv[1]), sys.argv[2]
encoding = Tokenizer.from_file(str(artifact / "tokenizer.json")).encode(text)
logprobs = Runner.load(artifact).score(encoding.ids)
for name, value in zip(encoding.tokens[1:], logprobs.tolist(), strict=True):
    print(f"{value:8.3f}  {name}")
print(f"perplexity {math.exp(-logprobs.mean()):.1f}")
