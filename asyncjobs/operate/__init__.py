"""What an operator does: look at jobs, and act on them; from any process, whether it works or not."""
