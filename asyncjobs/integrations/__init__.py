"""What hangs on events and never on a job's path."""
