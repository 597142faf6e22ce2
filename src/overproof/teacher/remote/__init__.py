"""Teachers behind an OpenAI-compatible endpoint: asked within a budget, kept request by request."""
