"""The SDK's own tests, with the parts of this package in place of the SDK's: `make test-sdk`."""
