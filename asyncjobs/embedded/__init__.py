"""The embedded store, used if no other is configured: a real Valkey server that the processes of a folder share."""
