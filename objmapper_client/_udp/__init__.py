"""Objects over UDP: the transfer without a socket, the socket, and the operations."""
