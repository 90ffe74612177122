"""Fine-tune LoRA factors on a text, save them as an adapter of PEFT, and build an artifact with it that generates.

    python examples/finetune.py CHECKPOINT FOLDER

CHECKPOINT has a tokenizer.json; one to try with: gptoss-export make-checkpoint CHECKPOINT --preset tiny. FOLDER is made
where it does not exist, and gets the artifact of the training step, the adapter, and the artifact that generates. What
is there already is used again. On a CPU each of the two builds takes minutes.
"""

import sys
from pathlib import Path

import tokenizers
import torch

import gptoss_export
from gptoss_export import BuildOptions, TrainOptions

TEXT = "An artifact is compiled once. It starts in seconds, and decodes at the speed of the memory."
STEPS, ENOUGH = 200, 0.1

checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(exist_ok=True)
trainer, adapter, artifact = folder / "trainer", folder / "adapter", folder / "artifact"
tokens = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids

if not trainer.exists():
    gptoss_export.build(checkpoint, trainer, BuildOptions(train=TrainOptions(tokens=128, lora_rank=8)))
step = gptoss_export.load_train_step(trainer)
batch = step.pack([tokens])

if not adapter.exists():
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3, weight_decay=0.0)
    for number in range(STEPS):
        loss = float(step(batch))
        if number % 20 == 0 or loss < ENOUGH:
            print(f"step {number}: loss {loss:.3f}")
        if loss < ENOUGH:
            break
        optimizer.step()
        optimizer.zero_grad()
    step.save_adapter(adapter)

if not artifact.exists():  # experts of 4 bits would lose the adapter
    options = BuildOptions(max_context=256, prefill_chunks=(64,), adapter=adapter, experts="bf16")
    gptoss_export.build(checkpoint, artifact, options)
runner = gptoss_export.load(artifact)
prompt = tokens[:10]
written = runner.generate(prompt, max_new_tokens=len(tokens) - len(prompt), stop_tokens=())
print("generated", *prompt, *written.tokens)
print("expected ", *tokens)
