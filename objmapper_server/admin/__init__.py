"""What the admin endpoint answers, who gets past its door, and what a connection to it may cost."""
