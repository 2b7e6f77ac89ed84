"""Tests. Each file is about one module; test_service and test_gunicorn are about all of them."""
