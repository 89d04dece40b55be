"""Calls of the app's code: its errors and its time are contained, and sync functions run in threads."""
