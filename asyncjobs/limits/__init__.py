"""Limits on when jobs start: shared limits, the lag that a start may have, and an operator's controls."""
