"""A server as a process: sockets from a service manager and words to it, signals, messages."""
