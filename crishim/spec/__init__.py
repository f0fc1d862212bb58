"""From configurations to what the executor runs. Pure: no file is opened and no clock is read."""
