"""Task types, the programs that prove their targets, and the sources that serve tasks by number."""
