"""Data-parallel training: the data of a request shared out to several processes, one per GPU."""
