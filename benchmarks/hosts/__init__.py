"""An app that embeds a job runtime, and those who visit it: see `python -m benchmarks.guest`."""
