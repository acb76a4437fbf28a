"""OpenAI's API over the engine: text, chat, likelihoods, and canvases one can watch."""
