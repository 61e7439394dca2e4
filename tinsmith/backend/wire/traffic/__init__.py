"""Recorded traffic: what went over the wire, one JSON object a line, and answers from it."""
