"""Settings: their sources and forms, the effective values, and reloads."""
