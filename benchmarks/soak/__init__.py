"""Long runs that look for what breaks: each ends with 1 where anything did, and `make soak` runs them all."""
