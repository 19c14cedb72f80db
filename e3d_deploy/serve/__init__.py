"""Server of the live page, the REST API and the WebSocket."""
