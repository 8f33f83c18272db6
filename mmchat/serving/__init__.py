"""`mmchat serve`: OpenAI's dialect over one assistant. `app` has the routes, `server` the process."""
