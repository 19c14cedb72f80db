"""The live page, REST and WebSocket server."""
