"""Upkeep beside the work: heartbeats, recovery of lost and stalled jobs, retention, and the watchdog of the loop."""
