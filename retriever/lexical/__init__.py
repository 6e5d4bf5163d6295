"""Word search as Lucene does it: `analyzer` (with `word_break`, `stemmer`), `index_builder`, `bm25`. On numpy alone."""
