"""Checks what a user writes: options, jobs and tasks, payloads, files."""
