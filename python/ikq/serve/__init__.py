"""`ikq serve`: a model as a server with the APIs of OpenAI, Anthropic and llama-server.

requests.py   requests of all APIs in a common form
events.py     the answers, piece by piece
errors.py     errors with a status; each API writes them in its own form
service.py    `Service`: from a request to events
engine.py     the thread that owns a model; scheduler.py what it computes next; prefixes.py what it remembers
routes/       one file per API: JSON to requests, events to JSON
app.py        the routes, keys, limits and logs in one application; server.py runs it

Needs the extra `ikq[serve]`; nothing else in ikq imports this package.
"""
