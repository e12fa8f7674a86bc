"""How settings are written, which of them are in force, and which can change while a server runs."""
