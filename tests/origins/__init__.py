"""Objects of origins: stores behind prefixes, and the disk cache."""
