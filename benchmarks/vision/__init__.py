"""`thriftree bench vision`: right answers with fewer visual tokens, and the time that they save."""
