"""Pure ASGI layers, one class per file. Outermost first, as `app.build` stacks them:

1.  `request_id`  the id that answers, logs and the engine share
    `cors`, `root_path`  where vLLM's flags ask for them (`server/edge.py`)
2.  `access_log`  one line per request, under that id
3.  `metrics`     counts and times, also of what the layers below refuse
4.  `errors`      one error shape for everything below
5.  `routes`      closed by default
6.  `body_limit`  bytes and seconds of a body; its one reader for the layers below
7.  `auth`        key -> whose it is
8.  `caps`        what that key may ask for
9.  `quota`       how much, per key and tenant
10. `admission`   by load: a place in the engine, in the queue, or a 429 that says when to come back
11. `deadline`    ends what takes too long, and everything when the server drains
12. `contract`    the `thrift` object in, `usage.thrift` out (`amend`)

Below them: our own routes, and vLLM's app (or the proxy to engines elsewhere) mounted at the root.
"""
