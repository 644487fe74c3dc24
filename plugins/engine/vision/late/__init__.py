"""The second stage of visual-token pruning: from a chosen layer on, the language model goes without visual tokens."""
