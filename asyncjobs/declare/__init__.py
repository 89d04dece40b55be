"""What a user writes, checked: options, jobs and tasks, payloads, files."""
