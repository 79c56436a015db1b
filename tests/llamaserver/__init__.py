"""llama-server with TurboPrefill, as its users meet it: scripts/server_tests."""
