"""The store where none is configured: a real Valkey server that the processes of a folder share."""
