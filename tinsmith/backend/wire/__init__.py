"""The HTTP face: what clients ask, checked and decoded, and the messages they are answered with."""
