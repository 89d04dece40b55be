"""Code of the app that the runtime calls: what it raises, how long it takes, and the threads in which it runs."""
