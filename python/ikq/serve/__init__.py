"""`ikq serve`: a model as a service that other programs' clients already speak to.

requests.py   what any API asks for, in ikq's own terms
events.py     what comes back, piece by piece
errors.py     why something was not done, with a status; each API writes it in its own form
service.py    `Service`: from a request to events
engine.py     the thread that owns a model; scheduler.py what it computes next; prefixes.py what it remembers
routes/       one file per API: JSON to requests, events to JSON
app.py        the routes, keys, limits and logs in one application; server.py runs it

Needs the extra `ikq[serve]`; nothing else in ikq imports this package.
"""
