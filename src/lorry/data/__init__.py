"""Read judged pairs from files and data sets, check them, split them, and put them into batches; torch is not used."""
