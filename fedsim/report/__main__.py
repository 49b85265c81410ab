"""``python -m fedsim.report``."""

from fedsim.report.command import main

main()
