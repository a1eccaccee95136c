"""Several processes, on one host or on several, that make one run: what they exchange, and how none waits for ever."""
