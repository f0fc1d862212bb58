"""The use cases of CRI as ordered effects, each with its undo; what they share is given to them by `app/`."""
