"""Tasks by the clock: expressions, and the scheduler that fires them once over all processes."""
