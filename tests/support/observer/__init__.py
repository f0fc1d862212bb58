"""What a process sees in a container of ours and in the same container of runc's and crun's, as comparable values.

A static program (the C files here) says all it sees, `containers` has the containers, `ours` and `peers` run them,
`normal` makes the answers comparable, and `table` reads the differences that are known (`docs/differences.md`).
`python -m tests.support.observer DIRECTORY` does one whole run and prints it as JSON.
"""
