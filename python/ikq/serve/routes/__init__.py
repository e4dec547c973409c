"""Paths of the server, one file per API: each has `ENDPOINTS`."""
