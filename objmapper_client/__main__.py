"""``python -m objmapper_client`` is ``objmapper``."""

from importlib import import_module

if __name__ == "__main__":
    # By name: the command is above this package, which does not depend on it.
    import_module("objmapper_cli.main").main()
