"""The OpenAI shapes: chat completions, models, files. Everything here is a translation; nothing here decides."""
