"""Text of an artifact: its tokenizer, text that streams, texts at which an answer ends."""
