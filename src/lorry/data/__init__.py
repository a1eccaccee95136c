"""From a channel's files to judged pairs, and from pairs to the batches of a run; no torch in here."""
