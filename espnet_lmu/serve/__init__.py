"""Live captions in the browser: a page, and a service that many share."""
