"""The admin endpoint: server, access control, routes, pages, metrics, and limits of its HTTP connections."""
