"""How well a model ranks and separates judged pairs, next to random order and BM25."""
