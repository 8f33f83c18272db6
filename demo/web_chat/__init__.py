"""The parts of the browser chat. `page` has the widgets; the others know nothing of Gradio."""
