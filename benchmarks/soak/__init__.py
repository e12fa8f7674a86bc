"""Long runs that exit with 1 when something is wrong; `make soak` runs all of them."""
