"""How well a model ranks and separates judged pairs, beside random order and BM25."""
