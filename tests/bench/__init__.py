"""Measure ftransfer next to the tools that people would use instead: `make bench`.

Whole processes are timed, as a user would start them; every tool runs once in each round, so that a slow
minute of the machine hits all of them; what is reported is the median. Verification is on. Nothing here
imports ftransfer: it is measured from outside, through its command.
"""
