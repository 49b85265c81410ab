"""Claims of papers as checks, one module per `fedsim-reproduce NAME` with `checks(runner)`."""
