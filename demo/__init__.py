"""An image backend that needs no account: for trying the proxy out, and for its tests."""
