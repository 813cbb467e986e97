"""The service "lab": pages, API and live journal. It imports nothing."""
