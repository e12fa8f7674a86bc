"""Objects over UDP: the sans-IO transfer, the socket, and the operations."""
