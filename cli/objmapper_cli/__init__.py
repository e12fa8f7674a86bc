"""The ``objmapper`` command: thin, one file a subcommand."""
