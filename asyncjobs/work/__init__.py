"""From a waiting job to its outcome: taking jobs, running them, and deciding what follows."""
