"""The commands of `crishim`; each has --json, and each error is one sentence."""
