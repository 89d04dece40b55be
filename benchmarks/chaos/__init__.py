"""Chaos: real worker processes, real servers, and all that can break; then a verdict. See `__main__.py`."""
