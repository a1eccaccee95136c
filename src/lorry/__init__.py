"""Lorry: a containerised LoRA trainer for text-embedding models."""
