"""One connection to a server: sockets, handshake, pipelined requests, the pool, retries."""
