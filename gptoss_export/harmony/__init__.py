"""Harmony, the chat format of gpt-oss: conversations to token ids, and token ids of an answer to messages.

OpenAI's library for the format, openai-harmony, is what the tests compare with, token for token. It is not used at run
time, because it has the vocabulary o200k_base built in, fetches it from the network, and knows no other. The tokenizer
in an artifact is what its model was trained with, and a fine-tuned or a small model can have another vocabulary.
"""
