"""What needs a CUDA GPU. Elsewhere everything in here is skipped, and says so."""
