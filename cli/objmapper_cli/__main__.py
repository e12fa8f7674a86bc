"""``python -m objmapper_cli`` is ``objmapper``."""

from objmapper_cli.main import main

if __name__ == "__main__":
    main()
