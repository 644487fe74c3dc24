"""Visual-token pruning and merging: pure methods, tensors and plain data."""
