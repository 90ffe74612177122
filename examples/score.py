"""Print how likely a text is: the log probability of each token after the first, and the perplexity.

    python examples/score.py ARTIFACT TEXT

ARTIFACT is a folder that `gptoss-export build` made of a checkpoint with a tokenizer.json. TEXT has two tokens or more.
Needs tokenizers: pip install 'gptoss-export[text]'
"""

import math
import sys
from pathlib import Path

from tokenizers import Tokenizer

import gptoss_export

artifact, text = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
tokenizer.no_truncation()  # the file may store one
tokenizer.no_padding()
encoding = tokenizer.encode(text)
logprobs = gptoss_export.load(artifact).score(encoding.ids)
for token, logprob in zip(encoding.tokens[1:], logprobs.tolist(), strict=True):
    print(f"{logprob:9.4f}  {token}")
print(f"perplexity {math.exp(-logprobs.mean()):.2f}")
