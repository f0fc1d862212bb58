"""Generated from `api/cri/v1/api.proto` and `crishim/cri/control.proto` by `make proto`; never edited."""
