"""The command line: `python -m commands sign|warm|cache|keys|check …`."""
