"""Structured output: which tokens an answer can have next, so that its JSON obeys a schema.

An answer is what the model generates after `<|start|>assistant`. It is any number of messages of free text (reasoning,
and remarks to the user), and then the final message or a call of a tool. Only the headers of messages and the bodies
that are JSON need a grammar. In free text the mask is a constant: all tokens of text, and the token that ends it.

llguidance computes the masks. It has no dependencies, reads the tokenizer.json of an artifact, takes JSON schema in
draft 2020-12, and needs tens of microseconds for a token of a vocabulary of 200,000. xgrammar does the same work and
depends on torch, triton and transformers, which a process that runs an artifact can do without. llguidance is imported
when the first structure is made.

Where what is enforced differs from JSON schema:

- Names of an object come in the order of `properties`. Names that no keyword lists come after them, and can repeat.
  They are compared as they are written, so that a listed name with escapes such as `\\u0061` counts as another one.
- White space is one space, or a line break and up to 32 spaces. There is none before and after a document.
- `format` is enforced where the library knows the format. A date can be 29 February in any year.
- The classes `\\d` and `\\w` of a `pattern` are those of ASCII.
- Numbers with bounds have no exponent, and integers have no fraction.
- Numbers beyond 2**53 cannot be enforced, as constants and as bounds: the library computes with float64.
"""
