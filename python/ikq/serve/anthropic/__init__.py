"""Anthropic's Messages API: what its JSON means in ikq's terms, and the other way round.

bodies.py    what is accepted
messages.py  a conversation of content blocks as messages with roles
request.py   a body as a `ChatRequest`
stream.py    events of a reply as the API's events
reply.py     these events as one message
errors.py    a `ServiceError` in the API's form
"""
