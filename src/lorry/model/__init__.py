"""A pre-trained encoder: its files and settings, tokens, packing, attention, LoRA adapters, and the proved merge."""
