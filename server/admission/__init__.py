"""Who gets into the engine, in which order, and when the others may come back."""
