"""The subcommands: one module each, with a function (or a group of commands) of the same name."""
