"""Pure ASGI layers, one class per file. Outermost first, as `app.build` stacks them:

1. `request_id`  the id that answers, logs and the engine share
2. (access log)  one line per request, under that id
3. `metrics`     counts and times, also of what the layers below refuse
4. `errors`      one error shape for everything below
5. `routes`      closed by default
6. (auth)        key -> tenant, (quota) of that tenant, (admission) by load, (deadline)
7. `contract`    the `thrift` object in, `usage.thrift` out; reads the body, so the body limit is here (`body`)

In brackets: their places, not built yet.

Below them: our own routes, and vLLM's app mounted at the root.
"""
