"""A server as a process: socket activation, notifications to the service manager, signals and logs."""
