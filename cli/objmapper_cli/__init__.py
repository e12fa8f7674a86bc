"""The ``objmapper`` command: one module for each subcommand, in `commands`."""
