"""gptoss-export: compile gpt-oss checkpoints ahead of time, run the artifact anywhere its target runs."""

__version__ = "0.1.0"
