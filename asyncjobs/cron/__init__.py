"""Tasks: the scheduler that fires each tick of a task once over all processes."""
