"""Reports of finished runs: tables and pictures in one file that opens anywhere."""
