"""Follow streams: forecast after each picture, and compare each forecast with the pictures that arrive later."""
