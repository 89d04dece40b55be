"""What keeps a job from starting now: limits of one queue, limits that queues share, and the controls over both."""
