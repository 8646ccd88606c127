"""Worlds: what can be in a picture, where it stands, and how it is drawn."""
