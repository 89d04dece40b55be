"""Benchmarks: scripts that print what they measured, with the machine they measured it on."""
