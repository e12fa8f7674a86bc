"""What is raised by what only a running server can do."""


class NotRunning(RuntimeError):
    """The server was not started, or has been stopped."""

    def __init__(self) -> None:
        super().__init__("this server is not running")
