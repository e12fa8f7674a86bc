"""What a client can do, over stream sockets: each operation once, as a generator of effects."""
