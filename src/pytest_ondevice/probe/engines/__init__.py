"""One module per runtime. Imported in the worker process only: this is where native code is."""
