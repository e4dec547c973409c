"""OpenAI's Responses API: what its JSON means in ikq's terms, and the other way round.

bodies.py    what is accepted
messages.py  items of a conversation as messages with roles
request.py   a body as a `ChatRequest`
response.py  the object that a response is
stream.py    events of a reply as the API's events
store.py     responses that later ones go on from
"""
