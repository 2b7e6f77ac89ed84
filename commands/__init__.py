"""The command line: `python -m commands sign|warm|links|cache|keys|check …`."""
