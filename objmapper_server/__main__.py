"""``python -m objmapper_server`` is ``objmapper``."""

from importlib import import_module

if __name__ == "__main__":
    # Imported by name: this package does not depend on the command.
    import_module("objmapper_cli.main").main()
