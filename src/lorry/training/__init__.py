"""From a batch of pairs to trained adapters: losses, optimizer step, loop, checkpoints."""
