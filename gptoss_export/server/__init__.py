"""An artifact behind OpenAI's API over HTTP: chat completions, completions and responses.

app.py lists the paths. A request is let in (admission.py), its body is read (endpoint.py) and becomes orders (chat.py,
completions.py, responses.py). The engine generates an answer for each (generating.py), readers make deltas of its
tokens (readers.py), and a sink makes the response of them, whole or as events (*_sinks.py). serving.py connects these.
process.py runs all of it in a process, from its first request to its last.
"""
