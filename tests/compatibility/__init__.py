"""Every public method of several SDK versions, run against the real server."""
