"""Integrations: they subscribe to events, and stand outside a job's path."""
