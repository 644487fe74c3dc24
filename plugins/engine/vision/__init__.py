"""The vision half of the engine adapter: vLLM's processors and models, taught to send fewer rows of an image."""
