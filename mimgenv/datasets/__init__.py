"""Task sources that read a user's local copy of a public data set."""
