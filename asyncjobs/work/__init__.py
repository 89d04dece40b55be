"""From a job that waits to its outcome: who takes it, who runs it, and what becomes of it."""
