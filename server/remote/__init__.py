"""The gateway in front of other servers (thriftree or stock vLLM): ``thriftree serve --engine URL --engine URL``.

Nothing of vLLM or torch is imported here. Pure parts: `ring` (which engine), `breaker` (whether to try it), `prefix`
(what a request begins with), `headers` (what crosses), `meter` (what an answer cost). With IO: `pool` (connections),
`health` (polling), `upstream` and `engines` (one engine; all of them), `attempts` (the first answer of any of them),
`proxy` (the ASGI app in the place of vLLM's), `serving` (start and stop).
"""
