"""Pretext tasks: small wrappers around one detector, which they train without labels."""
