"""Follow live streams: forecast after each picture, and measure each forecast once the truth has come."""
