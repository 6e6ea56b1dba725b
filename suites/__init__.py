"""The conformance checks that ship: one folder per suite, one requirement per check.

A check asks for measurements and holds them against bounds; how they are measured is not its
concern. No check measures by itself or depends on the order of another.
"""
