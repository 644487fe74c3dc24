"""Pure ASGI layers, one class per file. Outermost first, as `app.build` stacks them:

1. `request_id`  the id that answers, logs and the engine share
2. `metrics`     counts and times, also of what the layers below refuse
3. `errors`      one error shape for everything below
4. `routes`      closed by default
5. (auth)        key -> tenant; then (quota), (admission), (deadline): their places, not built yet
6. `contract`    the `thrift` object in, `usage.thrift` out

Below them: our own routes, and vLLM's app mounted at the root.
"""
