"""llama-server's own paths.

bodies.py       what requests hold
errors.py       a `ServiceError` in the form of these paths
completion.py   `/completion`: replies, whole or in pieces
slots.py        `/slots`: what they tell, files
metrics.py      `/metrics`: Prometheus' text
props.py        `/props`
"""
